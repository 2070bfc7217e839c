// The CUDA kernels as the bindings call them; no CUDA is needed to read this. All run on the call's device and stream, allocate
// nothing and wait for nothing. They throw std::invalid_argument for what a kernel cannot do, and std::runtime_error with the name
// of the CUDA call that failed.
#pragma once

#include <cstdint>

#include "common/geometry.h"
#include "common/reduction.h"

namespace gan_fast::cuda {

struct Call {
  int product;  // products.h
  int device;
  uintptr_t stream;  // its handle, an integer as Python has it
};

// y = act(conv(x) + bias) to 1 to 4 channels; x, weight (O, kh, kw, I) and y dense channels-last.
void conv(const Call& call, const ConvGeometry& geometry, const void* x, const void* weight, void* y, const Epilogue& epilogue);

// y = act(conv_transpose(x * act'(prologue_y)) + bias) from 1 to 4 channels; x, weight (I, kh, kw, O) and y dense channels-last.
void conv_transpose(const Call& call, const ConvGeometry& geometry, const void* x, const void* weight, void* y,
                    const Epilogue& epilogue, const Prologue& prologue);

// The weight gradient of the two above, in two launches: `few` is the tensor of 1 to 4 channels, the input of the transposed
// convolution that the geometry describes, `many` that of its output's shape; grad (few, kh, kw, many). partial: as many floats as
// conv_weight_grad_scratch says.
int64_t conv_weight_grad_scratch(int product, const ConvGeometry& geometry);
void conv_weight_grad(const Call& call, const ConvGeometry& geometry, const void* few, const void* many, float* partial, void* grad);

struct BceTensors {
  int64_t n;
  const void *x, *target, *weight, *pos_weight;  // n elements each; target, weight and pos_weight may be null
  float target_value;
  int reduction;
  float scale;  // of the gradient, and of a reduced loss
  void *loss, *grad;
  double* partial;    // one for each block; may be null where there is one
  uint32_t* counter;  // 0 before the launch and after it; may be null for one block
};

// Blocks that n elements are cut into: a function of n alone, so that the sums are the same on every device.
inline int bce_blocks(int64_t n) {
  constexpr int64_t per_block = 2048, most = 1024;
  const int64_t blocks = (n + per_block - 1) / per_block;
  return static_cast<int>(blocks < 1 ? 1 : blocks > most ? most : blocks);
}

// loss and d loss / d x in one launch, as csrc/cpu/bce_with_logits.h has the formulas.
void bce_with_logits(const Call& call, const BceTensors& tensors);

}  // namespace gan_fast::cuda
