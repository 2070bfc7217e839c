// How each output pixel gathers input pixels: the one description behind conv, conv_transpose and conv_weight_grad.
//
// Along one axis, the input is cut into `planes` (its residues modulo the stride of a strided convolution) and the output into
// phases (its residues modulo the stride of a transposed one), so that inside a phase everything is a unit-stride gather:
//   output[out_start + t * out_step] += weight[tap.kernel] * plane[tap.plane][t + tap.offset],
//   plane[p][j] = input[j * planes + p - lead], zero outside the input.
// No product with an inserted zero is ever made.
#pragma once

#include <cstdint>
#include <vector>

#include "common/geometry.h"

namespace gan_fast {

struct AxisTap {
  int64_t kernel;  // index into the kernel along this axis
  int64_t plane;
  int64_t offset;  // >= 0
};

struct AxisPhase {
  int64_t out_start, out_step, count;
  std::vector<AxisTap> taps;  // ordered by plane, then offset; may be empty
};

// A tap of a phase along both axes: its index into the kernel, and the plane and position that it reads.
struct Tap {
  int64_t kernel;  // ky * kernel_w + kx
  int64_t plane;   // plane_y * planes_x + plane_x
  int64_t dy, dx;
};

struct AxisPlan {
  int64_t in_size;
  int64_t planes;
  int64_t lead;
  int64_t span;  // 1 + largest offset: t reads positions t .. t + span - 1
  int64_t max_count;
  std::vector<AxisPhase> phases;
};

std::vector<Tap> phase_taps(const AxisPhase& y, const AxisPhase& x, int64_t planes_x, int64_t kernel_w);

// Orders taps as the input's rows hold what they read.
void order_by_place(std::vector<Tap>& taps, const AxisPlan& axis_y, const AxisPlan& axis_x);

// A word of an input row: where it begins, in elements from a pixel's own place, and the weights of what it holds, as channel * taps of the
// kernel + tap. An element that two words hold has half of its weight in each: a zero would make NaN of infinity.
struct RowWord {
  int64_t row, column;
  int64_t first, second;  // the second: of words of two
  bool half_first, half_second;
};

// Whether every element that a pixel reads has a neighbour that it reads too, so that words of two hold nothing else.
bool rows_make_pairs(const AxisPlan& axis_x, int64_t channels);

// The words of ordered taps that are read from the input's rows.
std::vector<RowWord> row_words(const std::vector<Tap>& taps, const AxisPlan& axis_y, const AxisPlan& axis_x, int64_t channels,
                               int64_t kernel_taps, int64_t per_word);

// Where a tap reads, in rows and columns of the input from an output's own place.
inline int64_t row_of(const Tap& tap, const AxisPlan& axis_y, const AxisPlan& axis_x) {
  return tap.dy * axis_y.planes + tap.plane / axis_x.planes;
}
inline int64_t column_of(const Tap& tap, const AxisPlan& axis_x) { return tap.dx * axis_x.planes + tap.plane % axis_x.planes; }

// Orders the taps and fills in span and max_count; the plans of conv.cpp and conv_transpose.cpp end with it.
void finish_plan(AxisPlan& plan);

AxisPlan plan_conv_axis(int64_t in_size, int64_t out_size, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation);
AxisPlan plan_conv_transpose_axis(int64_t in_size, int64_t out_size, int64_t kernel, int64_t stride, int64_t pad,
                                  int64_t dilation);

}  // namespace gan_fast
