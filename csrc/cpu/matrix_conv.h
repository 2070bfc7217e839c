// The engine of conv and conv_transpose for the matrix registers (matrix_kernels.h): bf16 or floats in three parts, direct, channels-last.
//
// As the gather engine (gather_conv.h), with two differences. A register's 16 rows are positions of the packed input that follow each
// other, over the ends of rows and images too: what lies between an image's rows is multiplied and not stored. And where input channels
// are few, a step takes a piece of the kernel's row, whose pixels' channels lie side by side.
// Small images lie side by side in the tile, [row][column][image], where that fills more of the registers' rows.
// Of bf16, Winograd's transforms would cost more than the products that they save: those take a tenth of the time that FMAs take. Floats, in six
// products of their parts (matrix_kernels.h), take two thirds of it: float_parts_pay.
#pragma once

#include <cstdint>

#include "common/geometry.h"
#include "gather_conv.h"
#include "gather_plan.h"
#include "winograd_plan.h"

namespace gan_fast {

// As gather_conv, which calls it where there are matrix registers. If `wide` is not null, what is added up goes there as it is, and not to y.
// False, and nothing of use written, where words cannot hold an operand (Parts): never of bf16.
template <class S>
bool matrix_conv(const ConvGeometry& geometry, const AxisPlan& axis_y, const AxisPlan& axis_x, const WeightStrides& strides,
                 const S* x, const S* weight, S* y, float* wide, const Epilogue& epilogue, const Prologue& prologue, int threads);

// Whether floats are served faster by their parts than by vectors, which `form` of Winograd's may help (no outputs: none does).
bool float_parts_pay(const ConvGeometry& geometry, const AxisPlan& axis_y, const AxisPlan& axis_x, const WinogradForm& form);

// Few output channels (matrix_few_conv.cpp): the taps of a kernel's row are lanes, and what they give is added up along the row afterwards.
bool matrix_few_pays(const ConvGeometry& geometry, const AxisPlan& axis_x);
template <class S>
bool matrix_few_conv(const ConvGeometry& geometry, const AxisPlan& axis_y, const AxisPlan& axis_x, const WeightStrides& strides,
                     const S* x, const S* weight, S* y, const Epilogue& epilogue, const Prologue& prologue, int threads);

}  // namespace gan_fast
