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

bool gathered_is_few(const Problem<Bf16, Bf16Pair>& p) { return p.gathered.channels <= p.dense.channels; }

}  // namespace

bool matrix_folds(const Problem<Bf16, Bf16Pair>& p) {
  const ConvGeometry& g = p.g;
  const int64_t few = std::min(p.gathered.channels, p.dense.channels), elements = g.kernel_w * few;
  if (g.groups != 1 || few > kFewChannels || g.dilation_w != 1 || elements > kMostElements) return false;
  // A dense operand gets a column for each of the gathered one's.
  return ceil_div(elements, kMatrixRows) * (gathered_is_few(p) ? 1 : g.stride_w) < g.kernel_w;
}

void matrix_folded(const Problem<Bf16, Bf16Pair>& p, Bf16* grad_weight) {
  const ConvGeometry& g = p.g;
  const bool gathered = gathered_is_few(p);
  const Operand<Bf16>& few = gathered ? p.gathered : p.dense;
  const Operand<Bf16>& other = gathered ? p.dense : p.gathered;
  const int64_t elements = g.kernel_w * few.channels, folded = 2 * ceil_div(elements, 2);
  const int64_t rows = g.batch * few.h, row_elements = few.w * few.channels;
  const int64_t outputs = p.dense.channels * p.gathered.channels / few.channels * folded * g.kernel_h;
  const auto aligned = [](int64_t n) { return ceil_div(n, 32) * 32; };
  const int64_t copied = few.prologue_y == nullptr ? 0 : aligned(rows * row_elements), packed = aligned(rows * other.w * folded);
  const CallScratch call_memory(kWholeCall, (copied + packed + outputs) * sizeof(Bf16));
  Bf16* const copy = call_memory.as<Bf16>();
  Bf16* const all = copy + copied;
  const Bf16* data = few.data;
  if (few.prologue_y != nullptr) {
    act_grad({2, rows * row_elements, few.data, few.prologue_y, copy, p.prologue.activation, p.prologue.slope}, p.threads);
    data = copy;
  }

  // A line holds the few operand's columns `spread` apart, from column `first` on, zeros between and around; a pixel begins every `step`.
  const int64_t first = gathered ? -g.pad_w : g.pad_w - (g.kernel_w - 1);
  const int64_t step = gathered ? g.stride_w : 1, spread = gathered ? 1 : g.stride_w;
  const int64_t columns = (other.w - 1) * step + g.kernel_w;
  constexpr int64_t kRowsPerTask = 16;
  parallel_tasks(ceil_div(rows, kRowsPerTask), p.threads, [&](int64_t task) {
    Bf16* const line = static_cast<Bf16*>(scratch(kTileA, columns * few.channels * sizeof(Bf16)));
    std::fill_n(line, columns * few.channels, Bf16{});
    // The first column that exists, and its place in the line.
    const int64_t begin = std::max<int64_t>(0, ceil_div(first, spread));
    const int64_t end = std::min(few.w, first + columns <= 0 ? 0 : ceil_div(first + columns, spread));
    MatrixPixels<Bf16> job{};
    job.input = line;
    job.last = job.columns = other.w;
    job.elements = elements;
    job.pixel_stride = step * few.channels;
    for (int64_t row = task * kRowsPerTask; row < std::min(rows, (task + 1) * kRowsPerTask); ++row) {
      const Bf16* const from = data + row * row_elements;
      for (int64_t column = begin; column < end; ++column) {
        std::copy_n(from + column * few.channels, few.channels, line + (column * spread - first) * few.channels);
      }
      job.out = reinterpret_cast<Bf16Pair*>(all + row * other.w * folded);
      matrix_kernels()->bf16.pack_pixels(job);
    }
  });

  ConvGeometry one_column = g;
  one_column.kernel_w = one_column.stride_w = 1;
  one_column.pad_w = 0;
  const Operand<Bf16> wide{all, nullptr, folded, folded, few.h, other.w};
  Bf16* const gradients = all + packed;
  matrix({one_column, gathered ? wide : other, gathered ? other : wide, p.prologue, p.rows, p.run, p.lanes, g.kernel_h, g.kernel_h, 1, p.threads},
         gradients);

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
}

}  // namespace weight_grad
}  // namespace gan_fast
