// A vector of VL lanes through GCC/Clang vector extensions: one kernel text serves every level.
// Kernel texts are compiled with the level's own flags, so they may use nothing from std:: that is inline and has linkage.
#pragma once

#ifndef GF_LEVEL
#error "vec.h is for kernel texts compiled per level: GF_LEVEL and GF_VECTOR_BYTES must be defined"
#endif

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

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

// The first `count` lanes (0 < count < lanes), the others zero; memory behind them is not touched.
template <class T>
inline __attribute__((always_inline)) Vec<T> load_first(const T* p, int64_t count) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    return reinterpret_cast<Vec<T>>(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p));
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
#endif
  for (int64_t i = 0; i < count; ++i) p[i] = v[i];
}

// Asks for `bytes` from p on, which need not be mapped. Packing reads each input once, from memory that is far away: without this
// it waits for every few pixels.
inline __attribute__((always_inline)) void prefetch(const void* p, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(static_cast<const char*>(p) + at, 0, 2);
}
constexpr int64_t kPrefetchPixels = 8;

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

}  // namespace GF_LEVEL
}  // namespace gan_fast
