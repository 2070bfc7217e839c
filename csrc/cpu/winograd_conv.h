// The gather engine with Winograd's F(2x2, 3x3): for every phase whose taps lie within three neighbours along each axis.
//
// One transform of a 4x4 piece of the input, 16 points, serves all phases (of a transposed convolution) and, summed in the transform
// domain, all planes (of a strided one). A phase with fewer than three taps along an axis is a filter with a zero at one end; its
// product at the point 0 or infinity vanishes and is skipped. Kernel 5 with stride 2 takes 49 products for a 4x4 output where direct
// takes 100, kernel 4 with stride 2 takes 36 for 64, a 3x3 kernel 16 for 36. Points 0, 1, -1, infinity: in fp32 the error is 1.6x
// direct's.
//   Source of F(2, 3): S. Winograd, Arithmetic Complexity of Computations, 1980; A. Lavin, S. Gray, arXiv 1509.09308.
#pragma once

#include <cstdint>

#include "common/geometry.h"
#include "gather_conv.h"
#include "gather_plan.h"
#include "isa.h"

namespace gan_fast {

constexpr int kPoints = 16;  // 4 x 4

constexpr uint8_t kSecondColumn = 1, kSecondRow = 2, kNoOutput = 4;

// Transforms 4x4 pieces of one plane: out[point][block][piece][channel] for the points that are wanted.
template <class T>
struct InputTransform {
  const T* tile;
  int64_t row_stride;        // elements between rows of the tile
  const int64_t* pieces;     // [count] offsets of each piece's first pixel
  int64_t count;
  int64_t in_block, blocks;  // stride and number of channel blocks
  T* out[kPoints];           // null: not wanted
  int64_t out_piece, out_block;
};

// Transforms the taps of one input channel for a block of output channels: out[point][lane].
template <class T>
struct WeightTransform {
  const T* taps[9];  // [3][3], each a line of 2 vectors; null: no such tap
  T* out[kPoints];   // null: the product vanishes
};

// Turns sums[point][piece][2 vectors] into 2x2 outputs per piece, with bias and activation.
template <class S>
struct OutputTransform {
  const Arithmetic<S>* sums[kPoints];  // null: zero
  int64_t count;
  const int64_t* out;      // [count] offsets of each piece's first output
  const uint8_t* valid;    // [count] bits below: the piece may reach over the output's edge
  S* output;
  int64_t out_row, out_pixel;
  int64_t out_lanes;
  const Arithmetic<S>* bias;  // padded to 2 vectors, or null
  int activation;
  Arithmetic<S> slope;
};

// Transforms 2x2 pieces of an output's gradient: out[point][piece][2 vectors].
template <class T>
struct GradientTransform {
  const T* tile;          // [row][column][2 vectors]
  int64_t row_stride;
  const int64_t* pieces;  // [count] offsets of each piece's first pixel
  int64_t count;
  T* out[kPoints];
};

// Turns the sums of one plane and one gathered channel, a line of 2 vectors at each point, into the gradients of its nine taps.
template <class T>
struct FilterTransform {
  const T* sums[kPoints];  // null: the product vanishes
  T* taps;                 // [9][2 vectors]
};

template <class S, class T = Arithmetic<S>>
struct WinogradFunctions {
  void (*input_transform)(const InputTransform<T>&);
  void (*weight_transform)(const WeightTransform<T>&);
  void (*output_transform)(const OutputTransform<S>&);
  void (*gradient_transform)(const GradientTransform<T>&);
  void (*filter_transform)(const FilterTransform<T>&);
};

struct WinogradKernels {
  WinogradFunctions<float> f32;
  WinogradFunctions<Bf16> bf16;
  WinogradFunctions<double> f64;  // portable level only
};

GAN_FAST_DECLARE_TABLE(WinogradKernels, winograd_kernels)

// Whether this engine can do the call, and saves enough products for its transforms.
bool winograd_pays(const ConvGeometry& geometry, const AxisPlan& axis_y, const AxisPlan& axis_x);

// As gather_conv, which calls it.
template <class S>
void winograd_conv(const ConvGeometry& geometry, const AxisPlan& axis_y, const AxisPlan& axis_x, const WeightStrides& strides,
                   const S* x, const S* weight, S* y, const Epilogue& epilogue, const Prologue& prologue, int threads);

}  // namespace gan_fast
