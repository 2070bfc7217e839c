// The gather engine where output channels are few: the vector runs over input channels, and each pixel of a row has one accumulator
// (few_block.h). Rows of the input are packed one after another into a ring of as many as an output reads, or, where their pixels are
// whole blocks of words, read where they lie: then taps outside of the image are left out above and below, and multiply zeros beside it.
#pragma once

#include "common/geometry.h"
#include "gather_conv.h"
#include "gather_plan.h"

namespace gan_fast {

// As gather_conv, which calls it. W: words of the packed operands (words.h).
template <class S, class W>
void few_conv(const ConvGeometry& geometry, const AxisPlan& axis_y, const AxisPlan& axis_x, const WeightStrides& strides, const S* x,
              const S* weight, S* y, const Epilogue& epilogue, const Prologue& prologue, int threads);

}  // namespace gan_fast
