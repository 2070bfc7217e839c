// What the ways of computing a weight gradient share (conv_weight_grad.h says what they compute).
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "ahead.h"
#include "common/geometry.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "conv_weight_grad.h"
#include "transpose.h"
#include "winograd_plan.h"

namespace gan_fast {
namespace weight_grad {

constexpr int64_t kTileBytes = 320 * 1024;  // the operands of a task's tile share a 1 MB L2 with its running sums
constexpr int64_t kChainPixels = 640;       // of a tile at most: its sums are a chain, unless the kernel cuts it (outer_block.h)

template <class S>
struct Operand {
  const S* data;
  const S* prologue_y;  // null unless the prologue multiplies this operand
  int64_t channels;     // per group
  int64_t all_channels;
  int64_t h, w;

  // Adds some images to what is fetched ahead, where there are no others' channels between theirs.
  void fetch_images(Ahead& ahead, int64_t first, int64_t images) const { fetch_rows(ahead, first * h, images * h); }

  // The same for rows of all images, counted through.
  void fetch_rows(Ahead& ahead, int64_t first, int64_t rows) const {
    if (channels != all_channels) return;
    const int64_t row = w * all_channels;
    for (const S* from : {data, prologue_y}) {
      if (from != nullptr) ahead.add(from + first * row, rows * row * static_cast<int64_t>(sizeof(S)));
    }
  }
};

// What all ways of computing the sum share. S: what the operands are stored in, W: the words of their packed copies.
template <class S, class W>
struct Problem {
  const ConvGeometry& g;
  Operand<S> gathered, dense;
  Prologue prologue;
  int rows;  // of a register block, at most
  const WeightGradFunctions<S, W>& run;
  int64_t lanes, taps;
  int64_t channel_step, tap_step;  // in grad_weight, whose rows are the dense side's channels, of the gathered side's channels
  int threads;

  // Fills a line of packed pixels of one operand; `row` may lie outside, columns too. With words of pairs, the next image's pixels
  // lie in their upper halves if `second`.
  void pack_line(const Operand<S>& operand, int64_t image, bool second, int64_t row, int64_t first, int64_t step, int64_t columns,
                 int64_t channel, int64_t channels, int64_t packed, W* out, int64_t out_pixel, int64_t out_block, const Parts& parts = {}) const {
    const bool inside = row >= 0 && row < operand.h;
    const int64_t offset = (image * operand.h + row) * operand.w * operand.all_channels + channel;
    PackChannels<S, W> job{};
    job.input = inside ? operand.data + offset : nullptr;
    job.prologue_y = inside && operand.prologue_y != nullptr ? operand.prologue_y + offset : nullptr;
    job.second = second ? operand.h * operand.w * operand.all_channels : 0;
    job.pixel_stride = operand.all_channels;
    job.first = first;
    job.step = step;
    job.width = operand.w;
    job.columns = columns;
    job.channels = channels;
    job.packed = packed;
    job.out = out;
    job.out_pixel = out_pixel;
    job.out_block = out_block;
    job.parts = parts;
    job.prologue_activation = prologue.activation;
    job.prologue_slope = static_cast<Arithmetic<S>>(prologue.slope);
    run.pack_channels(job);
  }

  // Writes the gradients of a block, [gathered channel][tap][lane]: `valid` gathered channels from `first` on, and those of the dense side
  // that its block `block` has.
  void store_block(const Arithmetic<S>* block_lines, int64_t group, int64_t first, int64_t valid, int64_t block, S* grad_weight) const {
    const int64_t lines = valid * taps, row = gathered.channels * taps;
    const S* from = nullptr;
    if constexpr (std::is_same_v<S, Arithmetic<S>>) {
      from = block_lines;
    } else {
      S* const narrowed = static_cast<S*>(scratch(kTileC, lines * lanes * sizeof(S)));
      for (int64_t i = 0; i < lines * lanes; ++i) narrowed[i] = narrow<S>(block_lines[i]);
      from = narrowed;
    }
    S* const to = grad_weight + (group * dense.channels + block * lanes) * row + first * channel_step;
    const int64_t columns = std::min(lanes, dense.channels - block * lanes);
    if (tap_step == 1) return transpose_piece<S>({from, lanes, to, row, lines, columns});
    for (int64_t tap = 0; tap < taps; ++tap) {
      transpose_piece<S>({from + tap * lanes, taps * lanes, to + tap * tap_step, row, valid, columns});
    }
  }
};

// The bias gradient: sums over pixels, in parts of so many. A way of computing the weight gradient may sum parts just before it packs
// the same pixels; which parts there are depends on the shape alone.
template <class S>
struct BiasGrad {
  static constexpr int64_t kPixels = 1024;
  const Problem<S, Arithmetic<S>>& p;
  const S* grad_output;
  int64_t channels, pixels, parts;
  Arithmetic<S>* partial;

  BiasGrad(const Problem<S, Arithmetic<S>>& problem, const S* grad, bool wanted)
      : p(problem), grad_output(grad), channels(problem.g.out_channels), pixels(problem.g.batch * problem.g.out_h * problem.g.out_w),
        parts(wanted ? ceil_div(pixels, kPixels) : 0), partial(nullptr) {
    if (parts != 0) partial = static_cast<Arithmetic<S>*>(scratch(kBiasSums, parts * channels * sizeof(Arithmetic<S>)));
  }

  void sum(int64_t part) const {
    const int64_t first = part * kPixels;
    ColumnSumJob<S> job{};
    job.grad = grad_output + first * channels;
    job.prologue_y = p.prologue.y == nullptr ? nullptr : static_cast<const S*>(p.prologue.y) + first * channels;
    job.pixels = std::min(kPixels, pixels - first);
    job.channels = channels;
    job.sums = partial + part * channels;
    job.prologue_activation = p.prologue.activation;
    job.prologue_slope = static_cast<Arithmetic<S>>(p.prologue.slope);
    p.run.column_sums(job);
  }

  // The parts that begin in these images.
  void sum_images(int64_t first, int64_t images) const {
    const int64_t image = p.g.out_h * p.g.out_w;
    for (int64_t part = ceil_div(first * image, kPixels); part < parts && part * kPixels < (first + images) * image; ++part) sum(part);
  }

  void sum_all() const {
    if (parts != 0) parallel_tasks(parts, p.threads, [&](int64_t part) { sum(part); });
  }

  void finish(S* grad_bias) const {
    for (int64_t c = 0; c < channels; ++c) {
      double sum = 0;
      for (int64_t part = 0; part < parts; ++part) sum += static_cast<double>(partial[part * channels + c]);
      grad_bias[c] = narrow<S>(static_cast<Arithmetic<S>>(sum));
    }
  }
};

// Tiles of `t` x `u` pixels of one operand, or of several whole images.
struct Tiling {
  int64_t images, t, u;
};

// Largest tile whose pixels, at `elements(images, t, u)` packed elements, fit the budget and one chain of sums.
template <class Elements>
Tiling choose_tile(int64_t batch, int64_t h, int64_t w, int64_t budget, const Elements& elements) {
  Tiling tile{1, h, w};
  const auto too_large = [&] { return elements(tile.images, tile.t, tile.u) > budget || tile.images * tile.t * tile.u > kChainPixels; };
  while (too_large() && tile.t > 1) tile.t = ceil_div(tile.t, 2);
  while (too_large() && tile.u > 16) tile.u = ceil_div(tile.u, 2);
  if (tile.t == h && tile.u == w) {
    while (tile.images < batch) {
      ++tile.images;
      if (too_large()) {
        --tile.images;
        break;
      }
    }
  }
  return tile;
}

// The sums of a weight gradient, blocks of dense channels x blocks of gathered ones, cut into ranges of n_step x m_step blocks.
struct SumRanges {
  int64_t groups, n_blocks, m_blocks;
  int64_t n_width, m_width;  // channels of a block
  int64_t n_step, m_step;

  SumRanges(int64_t groups, int64_t n_blocks, int64_t m_blocks, int64_t n_width, int64_t m_width)
      : groups(groups), n_blocks(n_blocks), m_blocks(m_blocks), n_width(n_width), m_width(m_width), n_step(n_blocks), m_step(m_blocks) {}

  int64_t n_ranges() const { return ceil_div(n_blocks, n_step); }
  int64_t m_ranges() const { return ceil_div(m_blocks, m_step); }
  int64_t count() const { return groups * n_ranges() * m_ranges(); }

  void halve() {
    int64_t& longer = m_step == 1 || (n_step > 1 && n_step * n_width >= m_step * m_width) ? n_step : m_step;
    longer = ceil_div(longer, 2);
  }

  // Until a range's sums, so many bytes for a pair of blocks, fit the budget.
  void fit(int64_t pair_bytes, int64_t budget) {
    while (n_step * m_step > 1 && n_step * m_step * pair_bytes > budget) halve();
  }

  // Smaller ranges for threads that would be idle: they change nothing that is added to anything, and pack operands more often, which
  // pays if the thread with most to do gets less.
  void spread(int64_t splits, int threads) {
    const auto longest = [&] { return ceil_div(count() * splits, std::max(threads, 1)) * n_step * m_step; };
    while (n_step * m_step > 1 && count() * splits < threads) {
      const SumRanges before = *this;
      halve();
      if (longest() >= ceil_div(before.count() * splits, std::max(threads, 1)) * before.n_step * before.m_step) {
        *this = before;
        break;
      }
    }
  }
};

// One operand has at most kFewChannels channels: its taps become rows (folded_weight_grad.cpp).
constexpr int64_t kFewChannels = 4;
template <class S, class W>
void folded(const Problem<S, W>& problem, bool gathered_is_few, S* grad_weight);

// On matrix registers (matrix_weight_grad.cpp), and where one operand has few channels (matrix_folded_grad.cpp). False, and nothing of use
// written, where words cannot hold an operand (Parts): never of bf16.
template <class S>
bool matrix(const Problem<S, Bf16Pair>& problem, S* grad_weight);
bool matrix_folds(const Problem<Bf16, Bf16Pair>& problem);
void matrix_folded(const Problem<Bf16, Bf16Pair>& problem, Bf16* grad_weight);

// Both operands have many channels, in the transform domain (winograd_weight_grad.cpp), in the form that winograd_form chose: as that of
// winograd_conv.h.
template <class S>
WinogradForm winograd_form(const Problem<S, Arithmetic<S>>& problem);
template <class S>
void winograd(const Problem<S, Arithmetic<S>>& problem, const WinogradForm& form, const BiasGrad<S>& bias, S* grad_weight);

}  // namespace weight_grad
}  // namespace gan_fast
