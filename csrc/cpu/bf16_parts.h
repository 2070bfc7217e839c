// Kernel text: parts of vectors of bf16, or of floats.
#pragma once

#include "vec.h"
#include "vec_math.h"

namespace gan_fast {
namespace GF_LEVEL {

constexpr int kVectorLanes = VecOf<float>::lanes;

// The first `left` of a vector of neighbours (zeros behind), times act'(y).
template <int ACT, class S>
static inline __attribute__((always_inline)) Vec<float> read_part(const S* in, const S* y, int64_t left, float slope) {
  if (left <= 0) return Vec<float>{};
  const Vec<float> value = left >= kVectorLanes ? read<S>(in) : read_first<S>(in, left);
  if constexpr (ACT == kNone) {
    return value;
  } else {
    return act_backward<ACT>(value, left >= kVectorLanes ? read<S>(y) : read_first<S>(y, left), slope);
  }
}

// Of a vector of which `left` > 0 lanes are wanted, or more than it has.
template <class S>
static inline __attribute__((always_inline)) void write_part(S* out, Vec<float> value, int64_t left) {
  if (left >= kVectorLanes) {
    write<S>(out, value);
  } else {
    write_first<S>(out, value, left);
  }
}

}  // namespace GF_LEVEL
}  // namespace gan_fast
