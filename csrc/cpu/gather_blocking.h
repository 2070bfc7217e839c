// How the gather engine (gather_conv.h) cuts a call into register blocks.
#pragma once

#include <cstdint>

#include "common/geometry.h"

namespace gan_fast {

// A vector of output channels would be mostly empty: run the vector over input channels instead.
bool few_outputs(const ConvGeometry& g, int64_t vector);

// The run length with the least work for `rows` rows of `width` pixels: what rounding adds (a row's last run overlaps, the last
// register block is padded) against what a small block loses to the latency of its few sums, and a little for each run's pointer.
int64_t best_run_length(int64_t rows, int64_t width, int64_t pixels);

}  // namespace gan_fast
