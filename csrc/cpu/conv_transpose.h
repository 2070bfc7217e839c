// Transposed convolution by output phases, without a product with an inserted zero. Kernels: gather_conv-inl.h.
#pragma once

#include "common/geometry.h"

namespace gan_fast {

// y = act(conv_transpose(x * act'(prologue_y)) + bias); dense channels-last x and y, weight (I, O/g, kh, kw) as torch has it or, if
// weight_last, in channels-last order. T: float, Bf16 or double.
template <class T>
void conv_transpose(const ConvGeometry& geometry, const T* x, const T* weight, bool weight_last, T* y, const Epilogue& epilogue,
                    const Prologue& prologue, int threads);

}  // namespace gan_fast
