// Kernel text: parts of vectors of bf16.
#pragma once

#include "vec.h"
#include "vec_math.h"

namespace gan_fast {
namespace GF_LEVEL {

constexpr int kVectorLanes = VecOf<float>::lanes;

// The first `left` of a vector of neighbours (zeros behind), times act'(y).
template <int ACT>
static inline __attribute__((always_inline)) Vec<float> read_part(const Bf16* in, const Bf16* y, int64_t left, float slope) {
  if (left <= 0) return Vec<float>{};
  const Vec<float> value = left >= kVectorLanes ? read(in) : read_first(in, left);
  if constexpr (ACT == kNone) {
    return value;
  } else {
    return act_backward<ACT>(value, left >= kVectorLanes ? read(y) : read_first(y, left), slope);
  }
}

// Of a vector of which `left` > 0 lanes are wanted, or more than it has.
static inline __attribute__((always_inline)) void write_part(Bf16* out, Vec<float> value, int64_t left) {
  if (left >= kVectorLanes) {
    write<Bf16>(out, value);
  } else {
    write_first<Bf16>(out, value, left);
  }
}

}  // namespace GF_LEVEL
}  // namespace gan_fast
