// The weight gradient of conv and conv_transpose: one sum over pixels,
//   grad_weight[n][m][k] = sum over images, t of dense[t][n] * gathered[t * stride + k * dilation - pad][m],
// where (gathered, dense) is (input, grad_output) for conv and (grad_output, input) for conv_transpose.
//
// A register block is `rows` channels of the gathered operand x 2 vectors of the dense one, for one tap; K runs over pixels, so both
// operands are packed with their channels innermost. If one operand has few channels, its taps are folded into them: the rows are then all
// (tap, channel) pairs and nothing is wasted on an almost empty vector. The other operand may be read where it lies.
#pragma once

#include <cstdint>

#include "common/bf16.h"
#include "common/geometry.h"
#include "fetch.h"
#include "isa.h"
#include "words.h"

namespace gan_fast {

// For each of `blocks` register blocks, which share b and are a_block and sums_block apart:
//   sums[rows][2 vectors] += over `images` x `lines` x `length` pixels: a[pixel][rows] * b[pixel][2 vectors].
template <class W>
struct OuterJob {
  int64_t blocks;
  const W* a;
  int64_t a_block, a_image, a_line, a_pixel;  // strides in elements
  const W* b;
  int64_t b_image, b_line, b_pixel;
  int64_t images, lines, length;
  Sum<W>* sums;
  int64_t sums_block;
  int rows;
  bool narrow;     // b has one vector; what follows need not be readable
  Fetch ahead[2];  // at every pixel of the even blocks, and of the odd ones
};

// One line of pixels into [block][pixel][packed channels]: `channels` in all, the rest of the last block zero. Whole vectors are
// written: a block needs a vector of slack at its end.
template <class S, class W>
struct PackChannels {
  const S* input;       // first channel of the input line, or null: outside, write zeros
  const S* prologue_y;  // or null
  int64_t second;       // from this line to the one of the image that shares words with it; 0: there is none
  int64_t pixel_stride;
  int64_t first, step, width;  // as in PackRow
  int64_t columns, channels, packed;
  W* out;
  int64_t out_pixel, out_block;
  Parts parts;  // as in PackRow
  int prologue_activation;
  Arithmetic<S> prologue_slope;
};

// One line of folded pixels: for each of `pixels`, `taps_y` pieces of `piece` neighbouring elements (the taps along x and their channels),
// one after another. Whole vectors are copied: `from` and `to` need a vector of slack at their ends.
template <class T>
struct FoldLine {
  const T* from;
  int64_t from_pixel, from_tap_y, from_tap_x;
  int64_t pixels, taps_y, taps_x, channels;
  T* to;
  int64_t to_pixel;
};

// sums[channels] = column sums of `pixels` x channels values times act'(prologue_y).
template <class S>
struct ColumnSumJob {
  const S* grad;
  const S* prologue_y;  // or null
  int64_t pixels, channels;
  Arithmetic<S>* sums;
  int prologue_activation;
  Arithmetic<S> prologue_slope;
};

template <class S, class W>
struct WeightGradFunctions {
  void (*outer)(const OuterJob<W>&);
  void (*pack_channels)(const PackChannels<S, W>&);
  void (*fold_line)(const FoldLine<W>&);
  void (*column_sums)(const ColumnSumJob<S>&);
};

struct WeightGradKernels {
  int rows;  // of a register block, at most
  int vector_bytes;
  WeightGradFunctions<float, float> f32;
  WeightGradFunctions<Bf16, float> bf16;
  WeightGradFunctions<double, double> f64;  // portable level only
};

GAN_FAST_DECLARE_TABLE(WeightGradKernels, weight_grad_kernels)

// x: forward input, grad_output: gradient of the forward output; dense channels-last. grad_weight in torch's layout of the forward
// operator or, if weight_last, in channels-last order; grad_bias (out_channels) or null. The prologue multiplies grad_output. S: float, Bf16 or double; sums are rounded to it
// once, at the end. Results do not depend on `threads`.
template <class S>
void conv_weight_grad(const ConvGeometry& geometry, bool transposed, const S* x, const S* grad_output, S* grad_weight, bool weight_last,
                      S* grad_bias, const Prologue& prologue, int threads);

}  // namespace gan_fast
