// bfloat16 in memory: the upper half of a float. Arithmetic is done in float; what is stored is rounded once, to the nearest,
// ties to even, and NaN stays NaN.
//
// Written in integer operations at every level. AVX512_BF16 has an instruction for it (VCVTNEPS2BF16), but that takes denormal
// numbers for 0, so its bits would differ from the other levels'; and kernels that only pass over memory wait for that.
#pragma once

#include <cstdint>
#include <type_traits>

namespace gan_fast {

struct bf16 {
  uint16_t bits;
};

// What elements of a storage type are computed in.
template <class S>
using Wide = std::conditional_t<std::is_same_v<S, bf16>, float, S>;

template <class S>
static inline Wide<S> widened(S x) {
  if constexpr (std::is_same_v<S, bf16>) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float wide;
    __builtin_memcpy(&wide, &bits, sizeof(wide));
    return wide;
  } else {
    return x;
  }
}

template <class S>
static inline S narrowed(Wide<S> x) {
  if constexpr (std::is_same_v<S, bf16>) {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, sizeof(bits));
    if (x != x) return bf16{static_cast<uint16_t>((bits >> 16) | 0x40)};  // a NaN of lower bits alone would become infinite
    return bf16{static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)};
  } else {
    return x;
  }
}

}  // namespace gan_fast

#ifdef GF_LEVEL
#include "cpu/vec.h"

namespace gan_fast {
namespace GF_LEVEL {

#define GF_BF16 inline __attribute__((always_inline))

// As many bfloat16 or integers as a vector has floats.
typedef uint16_t Bf16Bits __attribute__((vector_size(GF_VECTOR_BYTES / 2)));
typedef uint16_t Bf16BitsUnaligned __attribute__((vector_size(GF_VECTOR_BYTES / 2), aligned(2), may_alias));
typedef uint32_t FloatBits __attribute__((vector_size(GF_VECTOR_BYTES)));

GF_BF16 Vec<float> widened_vector(Bf16Bits x) {
  return reinterpret_cast<Vec<float>>(__builtin_convertvector(x, FloatBits) << 16);
}

GF_BF16 Bf16Bits narrowed_vector(Vec<float> x) {
  const FloatBits bits = reinterpret_cast<FloatBits>(x), upper = bits >> 16;
  const FloatBits rounded = (bits + 0x7FFF + (upper & 1)) >> 16;
  return __builtin_convertvector(x == x ? rounded : upper | 0x40, Bf16Bits);
}

// A vector of elements of storage type S from p on, in the type they are computed in.
template <class S>
GF_BF16 Vec<Wide<S>> load_wide(const S* p) {
  if constexpr (std::is_same_v<S, bf16>) {
    return widened_vector(static_cast<Bf16Bits>(*reinterpret_cast<const Bf16BitsUnaligned*>(p)));
  } else {
    return load(p);
  }
}

template <class S>
GF_BF16 void store_narrow(S* p, Vec<Wide<S>> v) {
  if constexpr (std::is_same_v<S, bf16>) {
    *reinterpret_cast<Bf16BitsUnaligned*>(p) = narrowed_vector(v);
  } else {
    store(p, v);
  }
}

// The first `count` elements (0 < count < lanes), as load_first and store_first.
template <class S>
GF_BF16 Vec<Wide<S>> load_wide_first(const S* p, int64_t count) {
  if constexpr (std::is_same_v<S, bf16>) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    return widened_vector(reinterpret_cast<Bf16Bits>(_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << count) - 1), p)));
#else
    Bf16Bits x{};
    for (int64_t i = 0; i < count; ++i) x[i] = p[i].bits;
    return widened_vector(x);
#endif
  } else {
    return load_first(p, count);
  }
}

template <class S>
GF_BF16 void store_narrow_first(S* p, Vec<Wide<S>> v, int64_t count) {
  if constexpr (std::is_same_v<S, bf16>) {
    const Bf16Bits x = narrowed_vector(v);
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    _mm256_mask_storeu_epi16(p, static_cast<__mmask16>((1u << count) - 1), reinterpret_cast<__m256i>(x));
#else
    for (int64_t i = 0; i < count; ++i) p[i].bits = x[i];
#endif
  } else {
    store_first(p, v, count);
  }
}

#undef GF_BF16

}  // namespace GF_LEVEL
}  // namespace gan_fast
#endif
