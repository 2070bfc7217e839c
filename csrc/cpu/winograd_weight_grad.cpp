// The weight gradient in the transform domain of F(m x m, r x r): with V = B^T d B of the gathered operand's (m + r - 1) x (m + r - 1)
// pieces and E = A y A^T of the dense one's m x m pieces, the gradient of an r x r filter g is G^T (sum over pieces of V * E) G. At each of
// the points that is a product of matrices whose inner dimension runs over the pieces. As many products as the forward pass
// (winograd_conv.h).
#include <algorithm>
#include <type_traits>
#include <vector>

#include "ahead.h"
#include "common/parallel.h"
#include "common/plan.h"
#include "common/scratch.h"
#include "gather_conv.h"
#include "isa.h"
#include "pair_kernels.h"
#include "tile.h"
#include "weight_grad_problem.h"
#include "winograd_conv.h"
#include "winograd_plan.h"

namespace gan_fast {
namespace weight_grad {
namespace {

constexpr double kLeastGainOfThree = 1.1, kLeastGainOfFour = 1.15;  // over F(2x2), and over both; in products
constexpr int64_t kFewestChannels = 32;  // below, the transforms cost more than the products they save
// In the whole call: the sums' inverse transform is shared by them. With 64 of F(4x4) the error can be 2.3 times PyTorch's, with 128 1.75.
constexpr int64_t fewest_pieces(int outputs) { return outputs == 4 ? 128 : 256; }
// Pieces of one chunk: the transformed operands of a chunk stream through L2 from L3, the sums too; the more pieces, the fewer passes over
// the sums. They are also the chain that rounds, which F(4x4)'s last transform magnifies.
constexpr int64_t chunk_pieces(int outputs) { return outputs == 4 ? 56 : 112; }
// Images are split by shape alone: each part has sums of its own, and what they add up to must not depend on the thread count. The
// dense operand's channels are cut into ranges, more of them if threads would be idle: the same sums, but the other operand is
// transformed again for each range.
constexpr int64_t kRangeChannels = 256;  // on Zen 3 and on an Emerald Rapids; as F(4x4) not measured on Zen 4 and 5
constexpr int64_t pieces_per_split(int outputs) { return outputs == 4 ? 512 : 1024; }
constexpr int64_t kMostSplits = 8;
constexpr int64_t kMostSumBytes = 256 << 20;
constexpr int64_t kSlotsAhead = 3;  // whose sums are fetched while parts are added up: some 70 lines of 4 parts

template <class S>
AxisPlan plan_y(const Problem<S, Arithmetic<S>>& p) {
  return plan_conv_axis(p.gathered.h, p.dense.h, p.g.kernel_h, p.g.stride_h, p.g.pad_h, p.g.dilation_h);
}

template <class S>
AxisPlan plan_x(const Problem<S, Arithmetic<S>>& p) {
  return plan_conv_axis(p.gathered.w, p.dense.w, p.g.kernel_w, p.g.stride_w, p.g.pad_w, p.g.dilation_w);
}

// Everything that the tasks of a call share.
template <class S, class W>
struct Call {
  const Problem<S, Arithmetic<S>>& p;
  AxisPlan axis_y, axis_x;
  const WinogradForm form;
  std::vector<AxisPiece> along_y, along_x;
  ConvGeometry gathered;  // the gathered operand, as pack_tile wants to be told of it
  std::vector<WinogradFilter> filters;
  int64_t slot[kMostPlanes][kMostPoints];  // place of a (plane, point) among the sums, or -1
  int64_t slots;
  int64_t rows, m_blocks, n_blocks, in_blocks;
  int64_t pieces_per_image, tile_images;
  int64_t pixel;       // elements of a transformed piece of the gathered operand at one slot
  int64_t block_sums;  // rows x lanes
  int64_t sums;        // of one task
  int64_t range_blocks, ranges, splits;
  TileLayout layout;

  Call(const Problem<S, Arithmetic<S>>& problem, const WinogradForm& chosen);
};

template <class S, class W>
Call<S, W>::Call(const Problem<S, Arithmetic<S>>& problem, const WinogradForm& chosen)
    : p(problem), axis_y(plan_y<S>(problem)), axis_x(plan_x<S>(problem)), form(chosen),
      along_y(cut_axis(problem.dense.h, chosen.outputs, chosen.lacks_first_y)),
      along_x(cut_axis(problem.dense.w, chosen.outputs, chosen.lacks_first_x)) {
  gathered = p.g;
  gathered.in_channels = p.gathered.all_channels;
  gathered.in_h = p.gathered.h;
  gathered.in_w = p.gathered.w;
  const int64_t planes = axis_y.planes * axis_x.planes;
  for (int64_t plane = 0; plane < planes; ++plane) {
    filters.push_back(
        winograd_filter(axis_y.phases[0], plane / axis_x.planes, axis_x.phases[0], plane % axis_x.planes, p.g.kernel_w, form.outputs));
  }
  slots = 0;  // in the order in which add_images multiplies them: what is added to next follows
  for (int point = 0; point < form.points(); ++point) {
    for (int64_t plane = 0; plane < planes; ++plane) slot[plane][point] = filters[plane].has(point) ? slots++ : -1;
  }
  m_blocks = ceil_div(p.gathered.channels, p.rows);
  rows = ceil_div(p.gathered.channels, m_blocks);
  n_blocks = ceil_div(p.dense.channels, p.lanes);
  in_blocks = ceil_div(p.gathered.channels, kChannelBlock);
  pixel = (in_blocks + 1) * kChannelBlock;  // one block more keeps pieces off strides that share L1 sets; and is slack
  pieces_per_image = static_cast<int64_t>(along_y.size() * along_x.size());
  tile_images = std::clamp<int64_t>(chunk_pieces(form.outputs) / pieces_per_image, 1, p.g.batch);
  block_sums = rows * p.lanes;
  // Powers of two: the usual numbers of cores divide them.
  splits = 1;
  const int64_t split_bytes = p.g.groups * slots * m_blocks * n_blocks * block_sums * static_cast<int64_t>(sizeof(Arithmetic<S>));
  const int64_t most_splits = std::min({p.g.batch * pieces_per_image / pieces_per_split(form.outputs), kMostSplits,
                                        ceil_div(p.g.batch, tile_images), kMostSumBytes / split_bytes});
  while (2 * splits <= most_splits) {
    splits *= 2;
  }
  const int64_t most_blocks = kRangeChannels / p.lanes;
  // More ranges than that, equal ones, where the thread with most to do has less then; a range's transform is as much as a block.
  const int64_t fewest_ranges = ceil_div(n_blocks, most_blocks), tasks_of_range = p.g.groups * splits, threads = std::max(p.threads, 1);
  const auto longest = [&](int64_t blocks) {
    return ceil_div(tasks_of_range * ceil_div(n_blocks, blocks), threads) * (blocks + 1);
  };
  range_blocks = ceil_div(n_blocks, fewest_ranges);
  for (int64_t more = fewest_ranges + 1; more <= std::min(n_blocks, fewest_ranges + threads); ++more) {
    const int64_t blocks = ceil_div(n_blocks, more);
    if (longest(blocks) < longest(range_blocks)) range_blocks = blocks;
  }
  ranges = ceil_div(n_blocks, range_blocks);
  sums = slots * range_blocks * m_blocks * block_sums;
  const auto reach = [&](const std::vector<AxisPiece>& along) { return along.back().start + line_points(form.outputs); };
  layout = TileLayout(reach(along_y), reach(along_x), planes, in_blocks);
}

template <class S, class W>
auto outer_of(const Problem<S, Arithmetic<S>>& p) {
  if constexpr (kPerWord<W> == 1) {
    return p.run.outer;
  } else {
    return pair_kernels()->weight_grad.outer;
  }
}

// A slot's products of a chunk: `words` of pieces from the first that has one.
struct Product {
  int point;
  int64_t slot, first_word, words;
};

// Transforms and multiplies some images' pieces, a chunk at a time.
template <class S, class W>
void add_images(const Call<S, W>& call, int64_t group, int64_t first_block, int64_t image, int64_t images, Sum<W>* sums) {
  using T = Arithmetic<S>;
  const Problem<S, T>& p = call.p;
  const auto& operands = winograd_operands<S, W>(call.form.outputs);
  const TilePlace place{group, image, images, 0, 0};
  T* const packed = static_cast<T*>(scratch(kTileA, images * call.layout.image_stride * sizeof(T)));
  const bool prologue_here = p.gathered.prologue_y != nullptr;
  const Prologue prologue{p.gathered.prologue_y, prologue_here ? p.prologue.activation : 0, p.prologue.slope};
  pack_tile(call.gathered, call.axis_y, call.axis_x, call.layout, place, p.gathered.data, prologue,
            functions_of<S>(gather_kernels_for<S>()).pack_row, packed);

  // The dense operand, a piece's m rows and columns together, with zeros for what it lacks: [block][image][row][column][lanes].
  const int outputs = call.form.outputs;
  const int64_t columns = outputs * static_cast<int64_t>(call.along_x.size()), lines = outputs * static_cast<int64_t>(call.along_y.size());
  const int64_t dense_row = columns * p.lanes, dense_image = lines * dense_row, dense_block = images * dense_image + p.lanes;
  const int64_t blocks = std::min(call.range_blocks, call.n_blocks - first_block);
  const int64_t first_channel = first_block * p.lanes;
  const int64_t channels = std::min(blocks * p.lanes, p.dense.channels - first_channel);
  T* const dense = static_cast<T*>(scratch(kTileB, blocks * dense_block * sizeof(T)));
  const auto pack = [&](int64_t n, int64_t row, int64_t column, int64_t count, int64_t line, int64_t slot) {
    p.pack_line(p.dense, image + n, false, row, column, 1, count, group * p.dense.channels + first_channel, channels, p.lanes,
                dense + n * dense_image + line * dense_row + slot * p.lanes, p.lanes, dense_block);
  };
  for (int64_t n = 0; n < images; ++n) {
    for (int64_t line = 0; line < lines; ++line) {
      const AxisPiece& y = call.along_y[line / outputs];
      if (line % outputs < y.first || line % outputs >= y.end) {
        pack(n, -1, 0, columns, line, 0);  // outside: zeros
        continue;
      }
      // From left to right: what is packed ends with a vector of zeros, which the next overwrites.
      const int64_t row = y.start + line % outputs;
      int64_t slot = 0;
      while (slot < columns) {
        const AxisPiece& x = call.along_x[slot / outputs];
        int64_t whole = slot;  // neighbours that lack nothing are one line
        while (whole < columns && !call.along_x[whole / outputs].is_short(outputs)) whole += outputs;
        if (whole > slot) {
          pack(n, row, x.start, whole - slot, line, slot);
          slot = whole;
          continue;
        }
        if (x.first > 0) pack(n, -1, 0, x.first, line, slot);
        pack(n, row, x.start + x.first, x.end - x.first, line, slot + x.first);
        if (x.end < outputs) pack(n, -1, 0, outputs - x.end, line, slot + x.end);
        slot += outputs;
      }
    }
  }

  const auto multiply = outer_of<S, W>(p);
  const int64_t all = images * call.pieces_per_image;
  std::vector<int64_t> gathered_at, dense_at;
  std::vector<int> edges;
  for (int edge = 0; edge < kEdges; ++edge) {
    for (int64_t n = 0; n < images; ++n) {
      for (std::size_t y = 0; y < call.along_y.size(); ++y) {
        for (std::size_t x = 0; x < call.along_x.size(); ++x) {
          if (edge_of(call.along_y[y].is_short(outputs), call.along_x[x].is_short(outputs)) != edge) continue;
          gathered_at.push_back(n * call.layout.image_stride +
                                (call.along_y[y].start * call.layout.columns + call.along_x[x].start) * kChannelBlock);
          dense_at.push_back(n * dense_image + static_cast<int64_t>(y) * outputs * dense_row + static_cast<int64_t>(x) * outputs * p.lanes);
          edges.push_back(edge);
        }
      }
    }
  }

  const int64_t chunks = ceil_div(all, chunk_pieces(outputs)), most = ceil_div(all, chunks);
  const int64_t most_words = ceil_div(most, kPerWord<W>);  // neighbouring pieces share them
  const int64_t v_slot = most_words * call.pixel + kPointPad, e_point = most_words * p.lanes + p.lanes;
  W* const v = static_cast<W*>(scratch(kTileC, (call.slots * v_slot + call.form.points() * blocks * e_point) * sizeof(W)));
  W* const e = v + call.slots * v_slot;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t first = all * chunk / chunks, count = all * (chunk + 1) / chunks - first;
    EdgeCounts counts{};
    for (int64_t i = first; i < first + count; ++i) ++counts.pieces[edges[i]];
    for (int64_t plane = 0; plane < call.layout.planes; ++plane) {
      InputTransform<T, W> job{};
      job.tile = packed + plane * call.layout.plane_stride;
      job.row_stride = call.layout.columns * kChannelBlock;
      job.pieces = gathered_at.data() + first;
      job.count = count;
      job.in_block = call.layout.block_stride;
      job.blocks = call.in_blocks;
      job.out_piece = call.pixel;
      job.out_block = kChannelBlock;
      for (int point = 0; point < call.form.points(); ++point) {
        job.out[point] = call.slot[plane][point] < 0 ? nullptr : v + call.slot[plane][point] * v_slot;
      }
      operands.input_pieces(job);
    }
    for (int64_t block = 0; block < blocks; ++block) {
      GradientTransform<T, W> job{};
      job.tile = dense + block * dense_block;
      job.row_stride = dense_row;
      job.pieces = dense_at.data() + first;
      job.count = count;
      for (int point = 0; point < call.form.points(); ++point) job.out[point] = e + (point * blocks + block) * e_point;
      operands.gradient_transform(job);
    }
    OuterJob<W> outer{};
    outer.a_pixel = call.pixel;
    outer.b_pixel = p.lanes;
    outer.images = outer.lines = 1;
    outer.rows = static_cast<int>(call.rows);
    outer.blocks = call.m_blocks;
    outer.a_block = call.rows;
    outer.sums_block = call.block_sums;
    // Points outside: the planes share a point's dense operand, and the blocks a plane's gathered one, while the near cache holds them.
    std::vector<Product> products;
    for (int point = 0; point < call.form.points(); ++point) {
      // Where a piece lacks an output the dense operand is zero at infinity, or at 0. A word that a piece with a product shares is taken whole.
      const PieceRange range = counts.at(point, call.form);
      if (range.end <= range.begin) continue;
      const int64_t first_word = range.begin / kPerWord<W>, words = ceil_div(range.end, kPerWord<W>) - first_word;
      for (int64_t plane = 0; plane < call.layout.planes; ++plane) {
        if (call.slot[plane][point] >= 0) products.push_back({point, call.slot[plane][point], first_word, words});
      }
    }
    // Sums and operands come from the far cache, which takes longer than the products of a few blocks: the even ones ask for what is added to
    // next, the odd ones for what the next slot reads.
    const int64_t line_sums = call.m_blocks * call.block_sums;
    for (std::size_t k = 0; k < products.size(); ++k) {
      const Product& product = products[k];
      const auto [even, odd] = BlockSteps(call.m_blocks, product.words);
      constexpr int64_t word_bytes = sizeof(W), sum_bytes = sizeof(Sum<W>);
      Ahead ahead(blocks * odd);
      const Sum<W>* next_slot_sums = nullptr;
      if (k + 1 < products.size()) {
        const Product& next = products[k + 1];
        next_slot_sums = sums + next.slot * call.range_blocks * line_sums;
        ahead.add(v + next.slot * v_slot + next.first_word * call.pixel, next.words * call.pixel * word_bytes);
        if (next.point != product.point) ahead.add(e + next.point * blocks * e_point, blocks * e_point * word_bytes);
      }
      outer.a = v + product.slot * v_slot + product.first_word * call.pixel;
      outer.length = product.words;
      for (int64_t block = 0; block < blocks; ++block) {
        outer.b = e + (product.point * blocks + block) * e_point + product.first_word * p.lanes;
        outer.sums = sums + (product.slot * call.range_blocks + block) * line_sums;
        outer.narrow = channels - block * p.lanes <= p.lanes / 2;
        const bool last = block + 1 == blocks;
        const Sum<W>* const next_sums = last ? next_slot_sums : outer.sums + line_sums;
        outer.ahead[0] = fetch_within(next_sums, next_sums == nullptr ? 0 : line_sums * sum_bytes, even);
        outer.ahead[1] = ahead.take(odd);
        multiply(outer);
      }
    }
  }
}

template <class S, class W>
void winograd_in(const Problem<S, Arithmetic<S>>& p, const WinogradForm& form, const BiasGrad<S>& bias, S* grad_weight) {
  using T = Arithmetic<S>;
  note_winograd(form.outputs);
  const Call<S, W> call(p, form);
  const auto& functions = functions_of<S>(winograd_kernels_for<S>().of(form.outputs));
  const int64_t tasks = p.g.groups * call.ranges * call.splits;
  const CallScratch sums_memory(kPartialSums, tasks * call.sums * sizeof(T));
  T* const partial = sums_memory.as<T>();
  parallel_tasks(tasks, p.threads, [&](int64_t task) {
    const int64_t split = task % call.splits, range = task / call.splits % call.ranges, group = task / call.splits / call.ranges;
    T* sums = partial + task * call.sums;
    std::fill(sums, sums + call.sums, T(0));
    const int64_t end = p.g.batch * (split + 1) / call.splits;
    for (int64_t image = p.g.batch * split / call.splits; image < end; image += call.tile_images) {
      const int64_t images = std::min(call.tile_images, end - image);
      if (group == 0 && range == 0) bias.sum_images(image, images);
      add_images(call, group, range * call.range_blocks, image, images, sums);
    }
  });

  parallel_tasks(p.g.groups * call.n_blocks * call.m_blocks, p.threads, [&](int64_t task) {
    const int64_t m = task % call.m_blocks, n = task / call.m_blocks % call.n_blocks, group = task / call.m_blocks / call.n_blocks;
    const int64_t m_valid = std::min(call.rows, p.gathered.channels - m * call.rows);
    // The block's sums, [slot][channel][lane]: where they are if there is one part of each, or added up; then its taps, [channel][tap][lane].
    const int64_t width = call.block_sums, slot_step = call.range_blocks * call.m_blocks * width;
    const T* const parts = partial + (group * call.ranges + n / call.range_blocks) * call.splits * call.sums +
                           (n % call.range_blocks * call.m_blocks + m) * width;
    const int64_t added = call.splits == 1 ? 0 : call.slots;
    T* const total = static_cast<T*>(scratch(kTileA, (added * width + 9 * p.lanes + call.rows * p.taps * p.lanes) * sizeof(T)));
    T* const nine = total + added * width;
    T* const taps = nine + 9 * p.lanes;
    for (int64_t slot = 0; slot < added; ++slot) {
      const T* const from = parts + slot * slot_step;
      T* const to = total + slot * width;
      constexpr int64_t line_elements = kFetchLine / static_cast<int64_t>(sizeof(T));
      for (int64_t split = 0; slot + kSlotsAhead < added && split < call.splits; ++split) {
        for (int64_t j = 0; j < width; j += line_elements) __builtin_prefetch(from + kSlotsAhead * slot_step + split * call.sums + j);
      }
      std::copy_n(from, width, to);
      for (int64_t split = 1; split < call.splits; ++split) {
        for (int64_t j = 0; j < width; ++j) to[j] += from[split * call.sums + j];
      }
    }
    const T* const sums = call.splits == 1 ? parts : total;
    const int64_t step = call.splits == 1 ? slot_step : width;
    for (int64_t i = 0; i < m_valid; ++i) {
      for (std::size_t plane = 0; plane < call.filters.size(); ++plane) {
        FilterTransform<T> job{};
        for (int point = 0; point < call.form.points(); ++point) {
          job.sums[point] = call.slot[plane][point] < 0 ? nullptr : sums + call.slot[plane][point] * step + i * p.lanes;
        }
        job.taps = nine;
        functions.filter_transform(job);
        for (int k = 0; k < 9; ++k) {
          const int64_t tap = call.filters[plane].kernel[k];
          if (tap >= 0) std::copy_n(nine + k * p.lanes, p.lanes, taps + (i * p.taps + tap) * p.lanes);
        }
      }
    }
    p.store_block(taps, group, m * call.rows, m_valid, n, grad_weight);
  });
}

// Whether F(4x4) in fp32 is within twice PyTorch's error. Ours is 5.5 to 9.4e-7 of a gradient's size; PyTorch's grows with the positions,
// from 4.6e-7 at 1600 (inputs that are all positive). Without a stride and with an image in channels_last PyTorch's on AVX-512 is 1.5 to
// 7e-7, however many there are, whatever the weight's order: ours would be up to 3.7 times as large.
template <class S>
bool exact_in_fp32(const Problem<S, Arithmetic<S>>& p) {
  return std::max(p.g.stride_h, p.g.stride_w) > 1;
}

}  // namespace

template <class S>
WinogradForm winograd_form(const Problem<S, Arithmetic<S>>& p) {
  if (std::min(p.gathered.channels, p.dense.channels) < kFewestChannels) return {};
  const AxisPlan axis_y = plan_y<S>(p), axis_x = plan_x<S>(p);
  const auto with = [&](int outputs) {
    const int64_t pieces = p.g.batch * ceil_div(p.dense.h, outputs) * ceil_div(p.dense.w, outputs);
    return pieces < fewest_pieces(outputs) ? WinogradChoice{} : winograd_with(outputs, axis_y, axis_x);
  };
  WinogradChoice best = with(2);
  // Tensors of double prove the texts, with one form; sums of pairs' products stream from as far as those of floats, for half the products.
  if (!std::is_same_v<S, double> && !(std::is_same_v<S, Bf16> && pair_kernels() != nullptr)) {
    const int vector_bytes = static_cast<int>(p.lanes / 2 * static_cast<int64_t>(sizeof(Arithmetic<S>)));
    const bool three_pays = three_outputs_pay(vector_bytes);
    if (const WinogradChoice three = with(3); three_pays && three.saving >= kLeastGainOfThree * best.saving) best = three;
    if (std::is_same_v<S, Bf16> || exact_in_fp32(p)) {
      const WinogradChoice four = with(4);
      if (four.saving >= std::max(kLeastSavingOfFour, kLeastGainOfFour * best.saving)) best = four;
    }
  }
  return best.saving >= kLeastWinogradSaving ? best.form : WinogradForm{};
}

template <class S>
void winograd(const Problem<S, Arithmetic<S>>& p, const WinogradForm& form, const BiasGrad<S>& bias, S* grad_weight) {
  if constexpr (std::is_same_v<S, Bf16>) {
    if (pair_kernels() != nullptr) return winograd_in<Bf16, Bf16Pair>(p, form, bias, grad_weight);
  }
  winograd_in<S, Arithmetic<S>>(p, form, bias, grad_weight);
}

#define GAN_FAST_WINOGRAD(S)                                               \
  template WinogradForm winograd_form<S>(const Problem<S, Arithmetic<S>>&); \
  template void winograd<S>(const Problem<S, Arithmetic<S>>&, const WinogradForm&, const BiasGrad<S>&, S*);
GAN_FAST_WINOGRAD(float)
GAN_FAST_WINOGRAD(Bf16)
GAN_FAST_WINOGRAD(double)

}  // namespace weight_grad
}  // namespace gan_fast
