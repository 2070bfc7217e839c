#include "conv_weight_grad.h"

#include <algorithm>
#include <type_traits>

#include "ahead.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "gather_plan.h"
#include "matrix_kernels.h"
#include "pair_kernels.h"
#include "weight_grad_problem.h"

namespace gan_fast {
namespace {

using namespace weight_grad;

constexpr int64_t kSumsBytes = 448 * 1024;   // running sums and packed operands of one task share a 1 MB L2
// Images are split by shape alone: each part has sums of its own, and what they add up to must not depend on the thread count.
constexpr int64_t kWantedTasks = 8;

// ---- both operands have many channels: one register block per (tap, channel block, channel block) ----------------------------------

template <class S, class W>
void blocked_weight_grad(const Problem<S, W>& p, S* grad_weight) {
  using T = Sum<W>;
  const ConvGeometry& g = p.g;
  const AxisPlan axis_y = plan_conv_axis(p.gathered.h, p.dense.h, g.kernel_h, g.stride_h, g.pad_h, g.dilation_h);
  const AxisPlan axis_x = plan_conv_axis(p.gathered.w, p.dense.w, g.kernel_w, g.stride_w, g.pad_w, g.dilation_w);
  const int64_t m_channels = p.gathered.channels, n_channels = p.dense.channels;
  const int64_t m_blocks = ceil_div(m_channels, p.rows);
  const int64_t rows = ceil_div(m_channels, m_blocks);
  const int64_t n_blocks = ceil_div(n_channels, p.lanes);
  const int64_t block_sums = rows * p.lanes;

  SumRanges cut(g.groups, n_blocks, m_blocks, p.lanes, rows);
  cut.fit(p.taps * block_sums * static_cast<int64_t>(sizeof(T)), kSumsBytes);
  const int64_t members = ceil_div(g.batch, kPerWord<W>);  // images, or pairs of them that share words
  const int64_t splits = std::min(members, ceil_div(kWantedTasks, cut.count()));
  const int64_t planes = axis_y.planes * axis_x.planes;

  const auto gathered_pixels = [&](int64_t t, int64_t u) { return planes * (t + axis_y.span - 1) * (u + axis_x.span - 1); };
  const Tiling tile = choose_tile(ceil_div(members, splits), p.dense.h, p.dense.w, kTileBytes / static_cast<int64_t>(sizeof(W)),
                                  [&](int64_t images, int64_t t, int64_t u) {
                                    return images * (cut.m_step * rows * gathered_pixels(t, u) + cut.n_step * p.lanes * t * u);
                                  });
  cut.spread(splits, p.threads);
  const int64_t n_step = cut.n_step, m_step = cut.m_step, n_ranges = cut.n_ranges(), m_ranges = cut.m_ranges(), ranges = cut.count();
  const int64_t tile_rows = tile.t + axis_y.span - 1, tile_columns = tile.u + axis_x.span - 1;
  const int64_t a_plane = tile_rows * tile_columns * rows + p.lanes;  // slack for whole vectors at a plane's end
  const int64_t a_image = planes * a_plane;
  const int64_t a_block = tile.images * a_image + p.lanes;  // slack; and keeps blocks off multiples of 4 KB
  const int64_t b_image = tile.t * tile.u * p.lanes;
  const int64_t b_block = tile.images * b_image + p.lanes;

  const int64_t range_sums = n_step * p.taps * m_step * block_sums;
  const CallScratch sums_memory(kPartialSums, ranges * splits * range_sums * sizeof(T));
  T* const partial = sums_memory.as<T>();

  parallel_tasks(ranges * splits, p.threads, [&](int64_t task) {
    const int64_t split = task / ranges, range = task % ranges;
    const int64_t n_first = range % n_ranges * n_step, n_last = std::min(n_blocks, n_first + n_step);
    const int64_t m_first = range / n_ranges % m_ranges * m_step, m_last = std::min(m_blocks, m_first + m_step);
    const int64_t group = range / n_ranges / m_ranges;
    T* sums = partial + task * range_sums;
    std::fill(sums, sums + range_sums, T(0));
    W* a = static_cast<W*>(scratch(kTileA, m_step * a_block * sizeof(W)));
    W* b = static_cast<W*>(scratch(kTileB, n_step * b_block * sizeof(W)));
    const int64_t member_end = members * (split + 1) / splits;
    for (int64_t member = members * split / splits; member < member_end; member += tile.images) {
      const int64_t images = std::min(tile.images, member_end - member);
      for (int64_t t = 0; t < p.dense.h; t += tile.t) {
        for (int64_t u = 0; u < p.dense.w; u += tile.u) {
          const int64_t lines = std::min(tile.t, p.dense.h - t), length = std::min(tile.u, p.dense.w - u);
          for (int64_t i = 0; i < images; ++i) {
            const int64_t m_channel = m_first * rows, n_channel = n_first * p.lanes;
            const int64_t image = (member + i) * kPerWord<W>;
            const bool second = kPerWord<W> > 1 && image + 1 < g.batch;
            // Input rows in the order in which they lie in memory; the planes of a row share its lines.
            for (int64_t r = 0; r < lines + axis_y.span - 1; ++r) {
              for (int64_t plane = 0; plane < planes; ++plane) {
                const int64_t py = plane / axis_x.planes, px = plane % axis_x.planes;
                p.pack_line(p.gathered, image, second, (t + r) * axis_y.planes + py - axis_y.lead,
                            u * axis_x.planes + px - axis_x.lead, axis_x.planes, length + axis_x.span - 1,
                            group * m_channels + m_channel, std::min(m_last * rows, m_channels) - m_channel, rows,
                            a + i * a_image + plane * a_plane + r * tile_columns * rows, rows, a_block);
              }
            }
            for (int64_t r = 0; r < lines; ++r) {
              p.pack_line(p.dense, image, second, t + r, u, 1, length, group * n_channels + n_channel,
                          std::min(n_last * p.lanes, n_channels) - n_channel, p.lanes,
                          b + i * b_image + r * tile.u * p.lanes, p.lanes, b_block);
            }
          }
          const int64_t member_after = member + images;
          Ahead ahead((n_last - n_first) * (m_last - m_first) * p.taps * images * lines * length);
          if (ranges == 1 && t + lines >= p.dense.h && u + length >= p.dense.w) {
            const int64_t following = std::min(tile.images, member_end - member_after) * kPerWord<W>;
            p.gathered.fetch_images(ahead, member_after * kPerWord<W>, std::min(following, g.batch - member_after * kPerWord<W>));
            p.dense.fetch_images(ahead, member_after * kPerWord<W>, std::min(following, g.batch - member_after * kPerWord<W>));
          }
          OuterJob<W> job{};
          job.a_image = a_image;
          job.a_line = tile_columns * rows;
          job.a_pixel = rows;
          job.b_image = b_image;
          job.b_line = tile.u * p.lanes;
          job.b_pixel = p.lanes;
          job.images = images;
          job.lines = lines;
          job.length = length;
          job.rows = static_cast<int>(rows);
          job.blocks = m_last - m_first;
          job.a_block = a_block;
          job.sums_block = block_sums;
          for (int64_t n = n_first; n < n_last; ++n) {
            job.b = b + (n - n_first) * b_block;
            job.narrow = n_channels - n * p.lanes <= p.lanes / 2;
            for (const AxisTap& ty : axis_y.phases[0].taps) {
              for (const AxisTap& tx : axis_x.phases[0].taps) {
                const int64_t tap = ty.kernel * g.kernel_w + tx.kernel;
                const int64_t plane = ty.plane * axis_x.planes + tx.plane;
                const int64_t place = plane * a_plane + (ty.offset * tile_columns + tx.offset) * rows;
                job.a = a + place;
                job.sums = sums + ((n - n_first) * p.taps + tap) * m_step * block_sums;
                ahead.take_both(BlockSteps(job.blocks, images * lines * length), job.ahead);
                p.run.outer(job);
              }
            }
          }
        }
      }
    }
  });

  parallel_tasks(g.groups * n_blocks * m_blocks, p.threads, [&](int64_t task) {
    const int64_t m = task % m_blocks, n = task / m_blocks % n_blocks, group = task / m_blocks / n_blocks;
    const int64_t range = (group * m_ranges + m / m_step) * n_ranges + n / n_step;
    const int64_t m_valid = std::min(rows, m_channels - m * rows);
    const T* block = partial + range * range_sums + (n % n_step * p.taps * m_step + m % m_step) * block_sums;
    T* const lines = static_cast<T*>(scratch(kTileA, rows * p.taps * p.lanes * sizeof(T)));
    for (int64_t i = 0; i < m_valid; ++i) {
      for (int64_t tap = 0; tap < p.taps; ++tap) {
        const T* sums = block + tap * m_step * block_sums + i * p.lanes;
        T* const line = lines + (i * p.taps + tap) * p.lanes;
        std::copy_n(sums, p.lanes, line);
        for (int64_t split = 1; split < splits; ++split) {
          sums += ranges * range_sums;
          for (int64_t j = 0; j < p.lanes; ++j) line[j] += sums[j];
        }
      }
    }
    p.store_block(lines, group, m * rows, m_valid, n, grad_weight);
  });
}

// The weight gradient in the way that is best for the shape, and the bias' sums.
template <class S>
void weight_and_bias_sums(const Problem<S, Arithmetic<S>>& p, const BiasGrad<S>& bias, S* grad_weight) {
  const ConvGeometry& g = p.g;
  const int64_t m = p.gathered.channels, n = p.dense.channels;
  const bool empty = g.batch == 0 || p.dense.h * p.dense.w == 0 || p.gathered.h * p.gathered.w == 0;
  const bool few = g.groups == 1 && std::min(m, n) <= kFewChannels && m != n;
  const bool matrix_registers = std::is_same_v<S, Bf16> && matrix_kernels() != nullptr;
  if (m != 0 && n != 0 && !empty && !few && !matrix_registers) {
    if (const WinogradForm form = winograd_form<S>(p); form.outputs != 0) return winograd<S>(p, form, bias, grad_weight);
  }
  bias.sum_all();
  if (m == 0 || n == 0) return;
  if (empty) {
    std::fill(grad_weight, grad_weight + g.groups * m * n * p.taps, S{});
    return;
  }
  if constexpr (std::is_same_v<S, Bf16>) {
    const PairKernels* pairs = pair_kernels();
    if (pairs != nullptr) {
      const Problem<Bf16, Bf16Pair> paired{g, p.gathered, p.dense, p.prologue, pairs->rows, pairs->weight_grad, p.lanes, p.taps,
                                           p.channel_step, p.tap_step, p.threads};
      // A single image would be half of every word: the matrix registers are fast enough for that.
      if (matrix_registers) {
        if (matrix_folds(paired)) return matrix_folded(paired, grad_weight);
        matrix(paired, grad_weight);
        return;
      }
      if (g.batch > 1) return few ? folded(paired, m < n, grad_weight) : blocked_weight_grad(paired, grad_weight);
    }
  }
  if constexpr (std::is_same_v<S, float>) {
    // In parts where no form of Winograd's helps, and registers are full enough: 0.91 to 1.02 times as fast with 17 and 33 channels, 1.1 to 1.3
    // with multiples of 16. Of a single image words would be half empty.
    constexpr double kFullEnough = 0.6;
    const auto full = [](int64_t channels) {
      return static_cast<double>(channels) / static_cast<double>(ceil_div(channels, kMatrixRows) * kMatrixRows);
    };
    if (matrix_kernels() != nullptr && g.batch > 1 && !few && full(m) * full(n) >= kFullEnough) {
      const Problem<float, Bf16Pair> split{g, p.gathered, p.dense, p.prologue, 0, matrix_kernels()->split_weight_grad, p.lanes, p.taps,
                                           p.channel_step, p.tap_step, p.threads};
      if (matrix(split, grad_weight)) return;
    }
  }
  if (few) {
    folded(p, m < n, grad_weight);
  } else {
    blocked_weight_grad(p, grad_weight);
  }
}

}  // namespace

template <class S>
void conv_weight_grad(const ConvGeometry& g, bool transposed, const S* x, const S* grad_output, S* grad_weight, bool weight_last,
                      S* grad_bias, const Prologue& prologue, int threads) {
  const S* y = static_cast<const S*>(prologue.y);
  const Operand<S> input{x, nullptr, g.in_channels / g.groups, g.in_channels, g.in_h, g.in_w};
  const Operand<S> grad{grad_output, y, g.out_channels / g.groups, g.out_channels, g.out_h, g.out_w};
  const WeightGradKernels& table = weight_grad_kernels_for<S>();
  const int64_t lanes = 2 * table.vector_bytes / static_cast<int64_t>(sizeof(Arithmetic<S>)), taps = g.kernel_h * g.kernel_w;
  const Operand<S>&gathered = transposed ? grad : input, &dense = transposed ? input : grad;
  const int64_t channel_step = weight_last ? 1 : taps, tap_step = weight_last ? gathered.channels : 1;
  const Problem<S, Arithmetic<S>> p{g, gathered, dense, prologue, table.rows, functions_of<S>(table), lanes, taps, channel_step, tap_step,
                                  threads};
  const BiasGrad<S> bias(p, grad_output, grad_bias != nullptr);
  weight_and_bias_sums(p, bias, grad_weight);
  if (grad_bias != nullptr) bias.finish(grad_bias);
}
template void conv_weight_grad<float>(const ConvGeometry&, bool, const float*, const float*, float*, bool, float*, const Prologue&, int);
template void conv_weight_grad<Bf16>(const ConvGeometry&, bool, const Bf16*, const Bf16*, Bf16*, bool, Bf16*, const Prologue&, int);
template void conv_weight_grad<double>(const ConvGeometry&, bool, const double*, const double*, double*, bool, double*, const Prologue&,
                                       int);

}  // namespace gan_fast
