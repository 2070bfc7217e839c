// Strided convolution: each output pixel gathers from the residues of the input modulo the stride. Kernels: gather_conv-inl.h.
#pragma once

#include "common/geometry.h"

namespace gan_fast {

// y = act(conv(x * act'(prologue_y)) + bias); dense channels-last x and y, weight (O, I/g, kh, kw) as torch has it or, if
// weight_last, in channels-last order. T: float, Bf16 or double.
template <class T>
void conv(const ConvGeometry& geometry, const T* x, const T* weight, bool weight_last, T* y, const Epilogue& epilogue,
          const Prologue& prologue, int threads);

}  // namespace gan_fast
