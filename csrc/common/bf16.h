// bfloat16: the upper half of a float. Tensors are stored in it; what is computed from them is computed in float.
#pragma once

#include <cstdint>

namespace gan_fast {

struct Bf16 {
  uint16_t bits;
};

// The type in which elements stored as S are added up and go through activations.
template <class S>
struct ArithmeticOf {
  using type = S;
};
template <>
struct ArithmeticOf<Bf16> {
  using type = float;
};
template <class S>
using Arithmetic = typename ArithmeticOf<S>::type;

// Always inlined: kernel texts use these too, and must not share a copy of them between levels.
template <class S>
__attribute__((always_inline)) inline S widen(S x) {
  return x;
}
__attribute__((always_inline)) inline float widen(Bf16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}

// To the nearest S, ties to even; NaN stays NaN.
template <class S>
__attribute__((always_inline)) inline S narrow(Arithmetic<S> x) {
  if constexpr (sizeof(S) == sizeof(x)) {
    return x;
  } else {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, sizeof(bits));
    const uint32_t rounded = x != x ? bits >> 16 | 0x40u : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    return {static_cast<uint16_t>(rounded)};
  }
}

}  // namespace gan_fast
