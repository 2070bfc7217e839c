// Derivative of batch_norm_act, from its input and the statistics.
//
// With h = (x - mean) / sqrt(var + eps), z = h * weight + bias and g = grad_output * act'(z):
//   grad_bias = sum g    grad_weight = sum g h
//   grad_input = weight / sqrt(var + eps) * g, and in training, where the statistics are functions of x, of
//                g - mean(g) - h mean(g h) instead of g
// z is computed again, in the very steps of the forward pass. To keep y instead would take no fewer bytes here, and z
// cannot be had from it where the weight is 0 or relu has cut it off.
#pragma once

#include <cstdint>

#include "cpu/bf16.h"
#include "cpu/isa.h"

namespace gan_fast {

// grad_output, x and grad_input: (rows, channels), contiguous; grad_input overlaps with neither. All per channel: weight and
// bias or null (for 1 and 0), mean and var as batch_norm_act has them, grad_weight and grad_bias. parameter_dtype, of weight,
// bias and their gradients: dtype, or 0 beside bfloat16.
struct BatchNormActBackward {
  int dtype;  // 0 float, 1 double, 2 bfloat16 (computed in float)
  int parameter_dtype;
  int64_t rows, channels;
  const void* grad_output;
  const void* x;
  const void* weight;
  const void* bias;
  const double* mean;
  const double* var;
  bool training;
  double eps;
  int activation;  // csrc/common/activation.h
  double slope;    // of leaky_relu
  void* grad_input;
  void* grad_weight;
  void* grad_bias;
};

// The same bits for any number of threads. Nothing is written if there are no rows. Throws std::bad_alloc.
void batch_norm_act_backward(const BatchNormActBackward& args, int threads);

// One piece: `rows` rows of `channels` elements, `stride` elements apart (csrc/cpu/batch_norm.h). The affine form of
// batch_norm_act is t = x - shift, z = t * scale + offset.
template <class S, class T = Wide<S>>
struct NormBackwardPiece {
  int64_t rows, stride, channels;
  const S* grad_output;
  const S* x;
  const T* shift;
  const T* scale;
  const T* offset;
  int activation;
  T slope;
};

template <class S, class T = Wide<S>>
struct BatchNormActBackwardFunctions {
  // Of each channel: sum of g, and of g * t.
  void (*sums)(const NormBackwardPiece<S>& piece, double* sum_g, double* sum_gt);
  // grad_input = g * scale + t * slope_of_t + constant
  void (*input)(const NormBackwardPiece<S>& piece, const T* slope_of_t, const T* constant, S* grad_input);
};

struct BatchNormActBackwardTable {
  BatchNormActBackwardFunctions<float> f32;
  BatchNormActBackwardFunctions<double> f64;  // portable level only
  BatchNormActBackwardFunctions<gan_fast::bf16> bf16;
};

GAN_FAST_DECLARE_TABLE(BatchNormActBackwardTable, batch_norm_act_backward_table)

}  // namespace gan_fast
