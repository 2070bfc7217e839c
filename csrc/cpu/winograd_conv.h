// The gather engine with Winograd's F(2x2, 3x3), F(3x3, 2x2) or F(4x4, 3x3): for every phase whose taps lie within three neighbours along
// each axis, or two.
//
// One transform of a 4x4 or 6x6 piece of the input serves all phases (of a transposed convolution) and, summed in the transform domain,
// all planes (of a strided one). A phase with fewer taps along an axis is a filter with a zero at one end; its product at the point 0 or
// infinity vanishes and is skipped. A piece that reaches over the output's edge, or into its neighbour, lacks an output and with it one of
// these points too: 7 outputs are 3 + 2 + 2. Products for 12x12 outputs of each phase or plane:
//   kernel 5, stride 2: 3600 directly, 1764 with F(2x2), 1089 with F(4x4)
//   kernel 4, stride 2: 2304, 1296, 1024 with F(3x3) (the strided convolution alone), 900
//   kernel 3, stride 2: 1296, 1296, 784 with F(3x3)
//   kernel 3:           1296, 576, 324 with F(4x4)
//
// F(2x2) and F(3x3) have the points 0, 1, -1, infinity: in fp32 the error is 1.6x direct's. F(4x4) with the points that are usual makes
// four times as much. Here it has the points 0, 5/8, -5/8, 3/2, -3/2, infinity, and the sums run in short chains, for it is their rounding
// that the last transform magnifies: 1.7x F(2x2)'s. winograd_form says where that is near enough.
//
// With words of pairs (F(2x2) and F(3x3) only) the transforms are computed in fp32 and rounded to bf16: an error of 3.8e-3 in the mean
// square, where rounding the operands of the direct way makes 2.35e-3. All told, with inputs that autocast rounds before and an output that
// is rounded after, it is 4.8e-3, 1.7 times the 2.9e-3 of PyTorch's bf16 operation and of the direct way; of that 4.15e-3 arise in here,
// 1.66e-3 in those.
//   Source of F(m, r): S. Winograd, Arithmetic Complexity of Computations, 1980; A. Lavin, S. Gray, arXiv 1509.09308. That points decide
//   the error: B. Barabasz et al., Error Analysis and Improving the Accuracy of Winograd Convolution for Deep Neural Networks, 2020.
#pragma once

#include <cstdint>

#include "common/geometry.h"
#include "gather_conv.h"
#include "gather_plan.h"
#include "isa.h"
#include "winograd_plan.h"

namespace gan_fast {

// The outputs of a piece that are to be stored; none where a phase is shorter than the longest.
struct PieceOutputs {
  uint8_t first_row, end_row, first_column, end_column;
};

// Transforms (m + r - 1) x (m + r - 1) pieces of one plane: out[point][block][piece][word] for the points that are wanted. Words of pairs hold
// neighbouring channels (two of the tile's blocks make one), or the same channel of neighbouring pieces.
template <class T, class W>
struct InputTransform {
  const T* tile;
  int64_t row_stride;        // elements between rows of the tile
  const int64_t* pieces;     // [count] offsets of each piece's first pixel
  int64_t count;
  int64_t in_block, blocks;  // stride and number of the tile's channel blocks
  W* out[kMostPoints];           // null: not wanted
  int64_t out_piece, out_block;
};

// Transforms the taps of one word of input channels for a block of output channels: out[point][lane].
template <class T, class W>
struct WeightTransform {
  const T* taps[kPerWord<W>][9];  // of each channel, [3][3], each a line of 2 vectors; null: no such tap
  W* out[kMostPoints];                // null: the product vanishes
  bool stream;                        // store around the cache
};

// Turns sums[point][piece][2 vectors] into m x m outputs per piece, with bias and activation.
template <class S>
struct OutputTransform {
  const Arithmetic<S>* sums[kMostPoints];  // null: zero
  int64_t count;
  const int64_t* out;         // [count] offsets of each piece's first output
  const PieceOutputs* valid;  // [count]
  S* output;
  int64_t out_row, out_pixel;
  int64_t out_lanes;
  bool stream;                // store around the cache
  const Arithmetic<S>* bias;  // padded to 2 vectors, or null
  int activation;
  Arithmetic<S> slope;
};

// Transforms m x m pieces of an output's gradient: out[point][piece][2 vectors], neighbouring pieces in one word of pairs.
template <class T, class W>
struct GradientTransform {
  const T* tile;          // [row][column][2 vectors]
  int64_t row_stride;
  const int64_t* pieces;  // [count] offsets of each piece's first pixel
  int64_t count;
  W* out[kMostPoints];
};

// Turns the sums of one plane and one gathered channel, a line of 2 vectors at each point, into the gradients of its nine taps.
template <class T>
struct FilterTransform {
  const T* sums[kMostPoints];  // null: the product vanishes
  T* taps;                     // [9][2 vectors]
};

// From a tile or weights to the operands of the products.
template <class T, class W>
struct WinogradOperands {
  void (*input_transform)(const InputTransform<T, W>&);  // words of neighbouring channels: for the products of both passes of data
  void (*input_pieces)(const InputTransform<T, W>&);     // words of neighbouring pieces: for the weight gradient
  void (*weight_transform)(const WeightTransform<T, W>&);
  void (*gradient_transform)(const GradientTransform<T, W>&);
};

template <class S>
struct WinogradFunctions {
  WinogradOperands<Arithmetic<S>, Arithmetic<S>> operands;
  void (*output_transform)(const OutputTransform<S>&);
  void (*filter_transform)(const FilterTransform<Arithmetic<S>>&);
};

// With m outputs.
struct WinogradTable {
  WinogradFunctions<float> f32;
  WinogradFunctions<Bf16> bf16;
  WinogradFunctions<double> f64;  // portable level and two outputs only
};

struct WinogradKernels {
  WinogradTable two, three, four;

  const WinogradTable& of(int outputs) const { return outputs == 2 ? two : outputs == 3 ? three : four; }
};

GAN_FAST_DECLARE_TABLE(WinogradKernels, winograd_kernels)

// Longest chain of sums, in steps of kChannelBlock words: as in gather_conv.cpp; shorter where the last transform magnifies its rounding.
constexpr int64_t winograd_chain(int outputs) { return outputs == 2 ? 40 : outputs == 3 ? 8 : 2; }

// The form that is exact enough for tensors of S and takes the least time by a model of it, with no outputs if this engine cannot do the call or saves too
// few products for its transforms.
template <class S>
WinogradForm winograd_form(const ConvGeometry& geometry, const AxisPlan& axis_y, const AxisPlan& axis_x, const WeightStrides& strides);

// As gather_conv, which calls it, with the form that winograd_form chose.
template <class S>
void winograd_conv(const ConvGeometry& geometry, const AxisPlan& axis_y, const AxisPlan& axis_x, const WinogradForm& form,
                   const WeightStrides& strides, const S* x, const S* weight, S* y, const Epilogue& epilogue, const Prologue& prologue,
                   int threads);

}  // namespace gan_fast
