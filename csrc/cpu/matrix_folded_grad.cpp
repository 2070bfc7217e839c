// The weight gradient on matrix registers where one operand has few channels: 16 rows or lanes of which one or three would be used.
//
// The kernel's columns become channels of that operand: of the gathered one, what all columns of the kernel meet at an output; of the
// dense one, the outputs that an input column reaches. The other operand then has a kernel of one column. 1 channel with a 7x7 kernel
// needs a seventh of the products.
#include <algorithm>
#include <vector>

#include "act_grad.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "matrix_kernels.h"
#include "weight_grad_problem.h"

namespace gan_fast {
namespace weight_grad {
namespace {

constexpr int64_t kMostElements = 32;  // that pack_pixels takes

template <class S>
bool gathered_is_few(const Problem<S, Bf16Pair>& p) { return p.gathered.channels <= p.dense.channels; }

}  // namespace

template <class S>
bool matrix_folds(const Problem<S, Bf16Pair>& p) {
  const ConvGeometry& g = p.g;
  const int64_t few = std::min(p.gathered.channels, p.dense.channels), elements = g.kernel_w * few;
  if (g.groups != 1 || few > kFewChannels || g.dilation_w != 1 || elements > kMostElements) return false;
  // A dense operand gets a column for each of the gathered one's.
  return ceil_div(elements, kMatrixRows) * (gathered_is_few(p) ? 1 : g.stride_w) < g.kernel_w;
}

template <class S>
bool matrix_folded(const Problem<S, Bf16Pair>& p, S* grad_weight) {
  const ConvGeometry& g = p.g;
  const bool gathered = gathered_is_few(p);
  const Operand<S>& few = gathered ? p.gathered : p.dense;
  const Operand<S>& other = gathered ? p.dense : p.gathered;
  const int64_t elements = g.kernel_w * few.channels, folded = 2 * ceil_div(elements, 2);
  const int64_t rows = g.batch * few.h, row_elements = few.w * few.channels;
  const int64_t outputs = p.dense.channels * p.gathered.channels / few.channels * folded * g.kernel_h;
  const auto aligned = [](int64_t n) { return ceil_div(n, 32) * 32; };
  const int64_t copied = few.prologue_y == nullptr ? 0 : aligned(rows * row_elements), packed = aligned(rows * other.w * folded);
  const CallScratch call_memory(kWholeCall, (copied + packed + outputs) * sizeof(S));
  S* const copy = call_memory.as<S>();
  S* const all = copy + copied;
  const S* data = few.data;
  if (few.prologue_y != nullptr) {
    act_grad({std::is_same_v<S, Bf16> ? 2 : 0, rows * row_elements, few.data, few.prologue_y, copy, p.prologue.activation, p.prologue.slope}, p.threads);
    data = copy;
  }

  // A line holds the few operand's columns `spread` apart, from column `first` on, zeros between and around; a pixel begins every `step`.
  const int64_t first = gathered ? -g.pad_w : g.pad_w - (g.kernel_w - 1);
  const int64_t step = gathered ? g.stride_w : 1, spread = gathered ? 1 : g.stride_w;
  const int64_t columns = (other.w - 1) * step + g.kernel_w;
  constexpr int64_t kRowsPerTask = 16;
  parallel_tasks(ceil_div(rows, kRowsPerTask), p.threads, [&](int64_t task) {
    S* const line = static_cast<S*>(scratch(kTileA, columns * few.channels * sizeof(S)));
    std::fill_n(line, columns * few.channels, S{});
    // The first column that exists, and its place in the line.
    const int64_t begin = std::max<int64_t>(0, ceil_div(first, spread));
    const int64_t end = std::min(few.w, first + columns <= 0 ? 0 : ceil_div(first + columns, spread));
    MatrixPixels<S> job{};
    job.input = line;
    job.last = job.columns = other.w;
    job.elements = elements;
    job.pixel_stride = step * few.channels;
    for (int64_t row = task * kRowsPerTask; row < std::min(rows, (task + 1) * kRowsPerTask); ++row) {
      const S* const from = data + row * row_elements;
      for (int64_t column = begin; column < end; ++column) {
        std::copy_n(from + column * few.channels, few.channels, line + (column * spread - first) * few.channels);
      }
      job.out = all + row * other.w * folded;
      functions_of<S>(*matrix_kernels()).copy_pixels(job);
    }
  });

  ConvGeometry one_column = g;
  one_column.kernel_w = one_column.stride_w = 1;
  one_column.pad_w = 0;
  const Operand<S> wide{all, nullptr, folded, folded, few.h, other.w};
  S* const gradients = all + packed;
  const bool whole = matrix<S>({one_column, gathered ? wide : other, gathered ? other : wide, p.prologue, p.rows, p.run, p.lanes, g.kernel_h, g.kernel_h, 1, p.threads},
            gradients);
  if (!whole) return false;

  for (int64_t n = 0; n < p.dense.channels; ++n) {
    for (int64_t m = 0; m < p.gathered.channels; ++m) {
      for (int64_t tap = 0; tap < p.taps; ++tap) {
        const int64_t ky = tap / g.kernel_w, kx = tap % g.kernel_w;
        const int64_t from = gathered ? n * folded + kx * few.channels + m
                                      : ((g.kernel_w - 1 - kx) * few.channels + n) * p.gathered.channels + m;
        grad_weight[n * p.gathered.channels * p.taps + m * p.channel_step + tap * p.tap_step] = gradients[from * g.kernel_h + ky];
      }
    }
  }
  return true;
}

template bool matrix_folds<Bf16>(const Problem<Bf16, Bf16Pair>&);
template bool matrix_folds<float>(const Problem<float, Bf16Pair>&);
template bool matrix_folded<Bf16>(const Problem<Bf16, Bf16Pair>&, Bf16*);
template bool matrix_folded<float>(const Problem<float, Bf16Pair>&, float*);

}  // namespace weight_grad
}  // namespace gan_fast
