// Some channels' weights copied together, on their way into the panels of gather_conv.cpp.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/scratch.h"
#include "gather_conv.h"

namespace gan_fast {

// A block of weights near by, and where (output channel, input channel, tap) lies in it.
template <class S>
struct BlockOfWeights {
  const S* weights;
  int64_t out, in, tap;
};

struct Extent {
  int64_t size, valid;  // of which `valid` exist; the others are zero
};

// Copies the weights of some channels in the runs in which they lie in memory: gathering lanes straight from there (strides that
// are powers of two) would evict each cache line before its next use.
template <class S>
BlockOfWeights<S> copy_block(const S* from, const WeightStrides& strides, int64_t taps, Extent channels, Extent lanes) {
  S* const to = static_cast<S*>(scratch(kTileA, channels.size * lanes.size * taps * sizeof(S)));
  BlockOfWeights<S> block{to, 0, 0, 0};
  // The axis of longest stride is taken step by step; what lies between two of its steps is one run for each tap, or one for all.
  const bool by_lane = strides.out >= strides.in;
  const Extent outer = by_lane ? lanes : channels, inner = by_lane ? channels : lanes;
  const int64_t outer_stride = by_lane ? strides.out : strides.in;
  const int64_t runs = strides.tap == 1 ? 1 : taps;
  const int64_t length = inner.size * taps / runs, valid = inner.valid * taps / runs;
  for (int64_t a = 0; a < outer.size; ++a) {
    for (int64_t r = 0; r < runs; ++r) {
      S* run = to + (a * runs + r) * length;
      const int64_t copied = a < outer.valid ? valid : 0;
      std::copy_n(from + a * outer_stride + r * strides.tap, copied, run);
      std::fill(run + copied, run + length, S{});
    }
  }
  const int64_t inner_step = strides.tap == 1 ? taps : 1, outer_step = inner.size * taps;
  block.tap = strides.tap == 1 ? 1 : inner.size;
  block.out = by_lane ? outer_step : inner_step;
  block.in = by_lane ? inner_step : outer_step;
  return block;
}

}  // namespace gan_fast
