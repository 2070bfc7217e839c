// A vector of VL lanes through GCC/Clang vector extensions: one kernel text serves every level.
// Kernel texts are compiled with the level's own flags, so they may use nothing from std:: that is inline and has linkage.
#pragma once

#ifndef GF_LEVEL
#error "vec.h is for kernel texts compiled per level: GF_LEVEL and GF_VECTOR_BYTES must be defined"
#endif

#include "common/bf16.h"
#include "fetch.h"

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#define GF_INLINE static inline __attribute__((always_inline))

namespace gan_fast {
namespace GF_LEVEL {

template <class T>
struct VecOf {
  static constexpr int lanes = GF_VECTOR_BYTES / static_cast<int>(sizeof(T));
  typedef T type __attribute__((vector_size(GF_VECTOR_BYTES)));
  typedef T unaligned __attribute__((vector_size(GF_VECTOR_BYTES), aligned(sizeof(T)), may_alias));
};

template <class T>
using Vec = typename VecOf<T>::type;

template <class T>
inline __attribute__((always_inline)) Vec<T> load(const T* p) {
  return *reinterpret_cast<const typename VecOf<T>::unaligned*>(p);
}

template <class T>
inline __attribute__((always_inline)) void store(T* p, Vec<T> v) {
  *reinterpret_cast<typename VecOf<T>::unaligned*>(p) = v;
}

// x - 0 is x for every x, -0 included, so compilers fold this into one broadcast.
template <class T>
inline __attribute__((always_inline)) Vec<T> splat(T x) {
  return x - Vec<T>{};
}

template <class V>
inline __attribute__((always_inline)) void add_product(V& sum, V a, V b) {
  sum += a * b;
}

// Of pairs of bf16: both products. The emulation proves the kernel texts where the instruction is missing; it rounds as the
// instruction does, but keeps denormals.
inline __attribute__((always_inline)) void add_product(Vec<float>& sum, Vec<uint32_t> a, Vec<uint32_t> b) {
#if defined(__AVX512BF16__)
  sum = reinterpret_cast<Vec<float>>(
      _mm512_dpbf16_ps(reinterpret_cast<__m512>(sum), reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b)));
#else
  sum += reinterpret_cast<Vec<float>>(a & 0xffff0000u) * reinterpret_cast<Vec<float>>(b & 0xffff0000u);
  sum += reinterpret_cast<Vec<float>>(a << 16) * reinterpret_cast<Vec<float>>(b << 16);
#endif
}

// Not under the address sanitizer, which does not look into these instructions.
#if defined(__AVX2__) && GF_VECTOR_BYTES == 32 && !defined(__SANITIZE_ADDRESS__)
#define GF_MASKS
// A mask of the first `count` lanes of 32 bits.
inline __attribute__((always_inline)) __m256i lanes_before(int64_t count) {
  static constexpr int32_t kOnesThenZeros[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kOnesThenZeros + 8 - count));
}
#endif

// The first `count` lanes (0 < count < lanes), the others zero; memory behind them is not touched.
template <class T>
inline __attribute__((always_inline)) Vec<T> load_first(const T* p, int64_t count) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    return reinterpret_cast<Vec<T>>(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p));
  }
#elif defined(GF_MASKS)
  if constexpr (sizeof(T) == 4) {
    return reinterpret_cast<Vec<T>>(_mm256_maskload_ps(reinterpret_cast<const float*>(p), lanes_before(count)));
  }
#endif
  Vec<T> v{};
  for (int64_t i = 0; i < count; ++i) v[i] = p[i];
  return v;
}

template <class T>
inline __attribute__((always_inline)) void store_first(T* p, Vec<T> v, int64_t count) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    return _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), reinterpret_cast<__m512>(v));
  }
#elif defined(GF_MASKS)
  if constexpr (sizeof(T) == 4) {
    // Not by a mask: that store takes a dozen cycles and more on AMD's cores.
    auto* to = reinterpret_cast<float*>(p);
    __m128 left = _mm256_castps256_ps128(reinterpret_cast<__m256>(v));
    if (count & 4) {
      _mm_storeu_ps(to, left);
      to += 4;
      left = _mm256_extractf128_ps(reinterpret_cast<__m256>(v), 1);
    }
    if (count & 2) {
      _mm_storel_pi(reinterpret_cast<__m64*>(to), left);
      to += 2;
      left = _mm_movehl_ps(left, left);
    }
    if (count & 1) _mm_store_ss(to, left);
    return;
  }
#endif
  for (int64_t i = 0; i < count; ++i) p[i] = v[i];
}

// Asks for `bytes` from p on, which need not be mapped. Packing reads each input once, from memory that is far away: without this
// it waits for every few pixels.
inline __attribute__((always_inline)) void prefetch(const void* p, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(static_cast<const char*>(p) + at, 0, 2);
}
constexpr int64_t kPrefetchPixels = 8;

// The same for what is read long after (ahead.h): one line. With nothing to fetch, kernels ask for what is near anyway.
inline __attribute__((always_inline)) void fetch(const char* at) { __builtin_prefetch(at, 0, 2); }
inline __attribute__((always_inline)) const char* first_fetch(const Fetch& ahead, const void* near) {
  return ahead.at != nullptr ? ahead.at : static_cast<const char*>(near);
}

// Writes around the cache; p must be aligned to the vector. For outputs that are far larger than the cache.
template <class T>
inline __attribute__((always_inline)) void store_stream(T* p, Vec<T> v) {
  store(p, v);
}
#if defined(__AVX512F__)
template <>
inline __attribute__((always_inline)) void store_stream<float>(float* p, Vec<float> v) {
  _mm512_stream_ps(p, reinterpret_cast<__m512>(v));
}
#elif defined(__AVX2__) && GF_VECTOR_BYTES == 32
template <>
inline __attribute__((always_inline)) void store_stream<float>(float* p, Vec<float> v) {
  _mm256_stream_ps(p, reinterpret_cast<__m256>(v));
}
#endif

// ---- between storage and arithmetic ---------------------------------------------------------------------------------------------
// read and write do what load and store do, and convert where elements are stored as bf16.

typedef uint16_t Halves __attribute__((vector_size(GF_VECTOR_BYTES / 2), aligned(2), may_alias));

inline __attribute__((always_inline)) Vec<float> widen_halves(Halves halves) {
#if defined(__AVX512F__)
  // With a mask of all lanes: GCC 12 warns that the plain form reads something undefined.
  const Vec<uint32_t> bits = reinterpret_cast<Vec<uint32_t>>(_mm512_maskz_cvtepu16_epi32(0xffff, reinterpret_cast<__m256i>(halves)));
#elif defined(__AVX2__) && GF_VECTOR_BYTES == 32
  const Vec<uint32_t> bits = reinterpret_cast<Vec<uint32_t>>(_mm256_cvtepu16_epi32(reinterpret_cast<__m128i>(halves)));
#else
  const Vec<uint32_t> bits = __builtin_convertvector(halves, Vec<uint32_t>);
#endif
  return reinterpret_cast<Vec<float>>(bits << 16);
}

// Copies N elements and goes on behind them.
template <int N>
inline __attribute__((always_inline)) void copy_of(char*& to, const Bf16*& from) {
  __builtin_memcpy(to, from, N * sizeof(Bf16));
  to += N * sizeof(Bf16);
  from += N;
}

// The first `count` (0 < count < lanes), zeros behind; memory behind them is not touched.
inline __attribute__((always_inline)) Halves load_first_halves(const Bf16* p, int64_t count) {
#if defined(__AVX512BW__) && defined(__AVX512VL__) && GF_VECTOR_BYTES == 64
  return reinterpret_cast<Halves>(_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << count) - 1), p));
#else
  // Of 8, 4, 2 and 1, each a copy of a size that is known here: with one that is not it would be a call.
  Halves halves{};
  char* to = reinterpret_cast<char*>(&halves);
  if constexpr (GF_VECTOR_BYTES == 64) {
    if (count & 8) copy_of<8>(to, p);
  }
  if (count & 4) copy_of<4>(to, p);
  if (count & 2) copy_of<2>(to, p);
  if (count & 1) copy_of<1>(to, p);
  return halves;
#endif
}

#if defined(__AVX512BF16__)
// AVX512_BF16's own conversion would make zeros of them.
inline __attribute__((always_inline)) bool has_denormals(Vec<float> v) {
  constexpr int denormal = 0x20;
  return __builtin_expect(_mm512_fpclass_ps_mask(reinterpret_cast<__m512>(v), denormal) != 0, false);
}
#endif

// Rounded to the nearest, ties to even; denormals survive, NaN stays NaN. By integer arithmetic where no instruction does all that.
inline __attribute__((always_inline)) Halves narrow_halves(Vec<float> v) {
#if defined(__AVX512BF16__)
  if (!has_denormals(v)) return reinterpret_cast<Halves>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(v)));
#endif
  const Vec<uint32_t> bits = reinterpret_cast<Vec<uint32_t>>(v);
  const Vec<uint32_t> upper = bits >> 16;
  const Vec<uint32_t> rounded = v != v ? upper | 0x40u : (bits + 0x7fffu + (upper & 1u)) >> 16;
#if defined(__AVX512F__)
  return reinterpret_cast<Halves>(_mm512_maskz_cvtepi32_epi16(0xffff, reinterpret_cast<__m512i>(rounded)));
#else
  return __builtin_convertvector(rounded, Halves);
#endif
}

// Words of pairs from 2 vectors of neighbours: (0, 1), (2, 3) and so on.
inline __attribute__((always_inline)) Vec<uint32_t> pair_neighbours(Vec<float> first, Vec<float> second) {
#if defined(__AVX512BF16__)
  return reinterpret_cast<Vec<uint32_t>>(_mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(second), reinterpret_cast<__m512>(first)));
#else
  const Halves halves[2] = {narrow_halves(first), narrow_halves(second)};
  Vec<uint32_t> words;
  __builtin_memcpy(&words, halves, sizeof(words));
  return words;
#endif
}

// Words whose lower half is a lane of the first and whose upper half is the same lane of the second.
inline __attribute__((always_inline)) Vec<uint32_t> pair_lanes(Vec<float> first, Vec<float> second) {
#if defined(__AVX512BF16__)
  typedef uint16_t Lanes __attribute__((vector_size(64)));
  const Lanes lanes = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return reinterpret_cast<Vec<uint32_t>>(_mm512_permutexvar_epi16(reinterpret_cast<__m512i>(lanes),
                                                                  reinterpret_cast<__m512i>(pair_neighbours(first, second))));
#else
  return __builtin_convertvector(narrow_halves(first), Vec<uint32_t>) | __builtin_convertvector(narrow_halves(second), Vec<uint32_t>) << 16;
#endif
}

template <class S>
inline __attribute__((always_inline)) Vec<Arithmetic<S>> read(const S* p) {
  if constexpr (sizeof(S) == sizeof(Bf16)) {
    return widen_halves(*reinterpret_cast<const Halves*>(p));
  } else {
    return load<S>(p);
  }
}

template <class S>
inline __attribute__((always_inline)) void write(S* p, Vec<Arithmetic<S>> v) {
  if constexpr (sizeof(S) == sizeof(Bf16)) {
    *reinterpret_cast<Halves*>(p) = narrow_halves(v);
  } else {
    store<S>(p, v);
  }
}

// As load_first and store_first.
template <class S>
inline __attribute__((always_inline)) Vec<Arithmetic<S>> read_first(const S* p, int64_t count) {
  if constexpr (sizeof(S) == sizeof(Bf16)) {
    return widen_halves(load_first_halves(p, count));
  } else {
    return load_first<S>(p, count);
  }
}

template <class S>
inline __attribute__((always_inline)) void write_first(S* p, Vec<Arithmetic<S>> v, int64_t count) {
  if constexpr (sizeof(S) == sizeof(Bf16)) {
    const Halves halves = narrow_halves(v);
#if defined(__AVX512BW__) && defined(__AVX512VL__) && GF_VECTOR_BYTES == 64
    _mm256_mask_storeu_epi16(p, static_cast<__mmask16>((1u << count) - 1), reinterpret_cast<__m256i>(halves));
#else
    auto* from = reinterpret_cast<const Bf16*>(&halves);
    char* to = reinterpret_cast<char*>(p);
    if constexpr (GF_VECTOR_BYTES == 64) {
      if (count & 8) copy_of<8>(to, from);
    }
    if (count & 4) copy_of<4>(to, from);
    if (count & 2) copy_of<2>(to, from);
    if (count & 1) copy_of<1>(to, from);
#endif
  } else {
    store_first<S>(p, v, count);
  }
}

template <class S>
inline __attribute__((always_inline)) void write_stream(S* p, Vec<Arithmetic<S>> v) {
  if constexpr (sizeof(S) == sizeof(Bf16)) {
#if defined(__AVX512F__)
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(narrow_halves(v)));
#elif defined(__AVX2__) && GF_VECTOR_BYTES == 32
    _mm_stream_si128(reinterpret_cast<__m128i*>(p), reinterpret_cast<__m128i>(narrow_halves(v)));
#else
    write(p, v);
#endif
  } else {
    store_stream<S>(p, v);
  }
}

// Two neighbouring vectors, perhaps around the cache.
template <class S>
inline __attribute__((always_inline)) void write_two(S* p, Vec<Arithmetic<S>> first, Vec<Arithmetic<S>> second, bool stream) {
  constexpr int lanes = VecOf<Arithmetic<S>>::lanes;
#if defined(__AVX512BF16__)
  if constexpr (sizeof(S) == sizeof(Bf16)) {
    if (!has_denormals(first) && !has_denormals(second)) {  // a whole line
      const __m512i words = reinterpret_cast<__m512i>(pair_neighbours(first, second));
      return stream ? _mm512_stream_si512(reinterpret_cast<__m512i*>(p), words) : _mm512_storeu_si512(p, words);
    }
  }
#endif
  if (stream) {
    write_stream<S>(p, first);
    write_stream<S>(p + lanes, second);
  } else {
    write<S>(p, first);
    write<S>(p + lanes, second);
  }
}

}  // namespace GF_LEVEL
}  // namespace gan_fast
