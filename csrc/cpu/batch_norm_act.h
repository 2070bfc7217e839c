// y = act((x - mean) / sqrt(var + eps) * weight + bias), mean and var of each channel over all rows.
#pragma once

#include <cstdint>

#include "cpu/bf16.h"
#include "cpu/isa.h"

namespace gan_fast {

// x and y: (rows, channels), contiguous, not overlapping. weight, bias: (channels) or null, which stands for 1 and 0.
// dtype: 0 float, 1 double, 2 bfloat16 (computed in float); parameter_dtype, of weight and bias: dtype, or 0 beside bfloat16.
struct BatchNormAct {
  int dtype;
  int parameter_dtype;
  int64_t rows, channels;
  const void* x;
  const void* weight;
  const void* bias;
  bool training;  // mean and var (divided by rows) are computed and written; otherwise they are read
  double* mean;
  double* var;
  double eps;
  int activation;  // csrc/common/activation.h
  double slope;    // of leaky_relu
  void* y;
};

// The same bits for any number of threads. Nothing is written if there are no rows. Throws std::bad_alloc.
void batch_norm_act(const BatchNormAct& args, int threads);

// Channels of one piece, at most: its sums stay in the first-level cache.
constexpr int64_t kNormChannels = 512;

// Kernels of one piece: `rows` rows of `channels` elements, `stride` elements apart (csrc/cpu/batch_norm.h).
template <class S, class T = Wide<S>>
struct BatchNormActFunctions {
  // Mean, and the sum of squared deviations from it, of each channel of the piece.
  void (*moments)(const S* x, int64_t rows, int64_t stride, int64_t channels, double* mean, double* squares);
  // y = act((x - shift) * scale + offset)
  void (*apply)(const S* x, int64_t rows, int64_t stride, int64_t channels, const T* shift, const T* scale, const T* offset,
                int activation, T slope, S* y);
};

struct BatchNormActTable {
  BatchNormActFunctions<float> f32;
  BatchNormActFunctions<double> f64;  // portable level only
  BatchNormActFunctions<gan_fast::bf16> bf16;
};

GAN_FAST_DECLARE_TABLE(BatchNormActTable, batch_norm_act_table)

}  // namespace gan_fast
