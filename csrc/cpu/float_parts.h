// Kernel text: floats as sums of three bf16 (matrix_kernels.h), packed as the pair kernels pack bf16.
#pragma once

#include "bf16_parts.h"
#include "common/activation.h"
#include "matrix_kernels.h"
#include "vec.h"
#include "vec_math.h"

namespace gan_fast {
namespace GF_LEVEL {

// What is left for the last parts of two vectors: whether they hold it.
GF_INLINE void check_last(Vec<float> first, Vec<float> second, const Parts& parts) {
#if defined(__AVX512DQ__)
  constexpr int nan_infinity_denormal = 0x01 | 0x80 | 0x08 | 0x10 | 0x20;
  const bool lost = (_mm512_fpclass_ps_mask(reinterpret_cast<__m512>(first), nan_infinity_denormal) |
                     _mm512_fpclass_ps_mask(reinterpret_cast<__m512>(second), nan_infinity_denormal)) != 0;
#else
  bool lost = false;
  for (int i = 0; i < 2 * kVectorLanes; ++i) {
    const uint32_t size = reinterpret_cast<Vec<uint32_t>>(i < kVectorLanes ? first : second)[i % kVectorLanes] & 0x7fffffffu;
    lost |= size != 0 && (size < 0x00800000u || size >= 0x7f800000u);
  }
#endif
  if (__builtin_expect(lost, false)) __atomic_store_n(parts.lost, 1, __ATOMIC_RELAXED);
}

// The parts of words of neighbours, of which the first `count` are wanted, or more than there are.
GF_INLINE void split_neighbours(Vec<float> first, Vec<float> second, Bf16Pair* out, const Parts& parts, int64_t count = kVectorLanes) {
#pragma GCC unroll 3
  for (int64_t part = 0; part < kParts<float>; ++part) {
    if (part + 1 == kParts<float>) check_last(first, second, parts);
    const Vec<Bf16Pair> words = pair_neighbours(first, second);
    if (count >= kVectorLanes) {
      store<Bf16Pair>(out + part * parts.stride, words);
    } else {
      store_first<Bf16Pair>(out + part * parts.stride, words, count);
    }
    Halves halves[2];
    __builtin_memcpy(halves, &words, sizeof(words));
    first -= widen_halves(halves[0]);
    second -= widen_halves(halves[1]);
  }
}

// The parts of words whose lower half is a lane of the first and whose upper half is the same lane of the second.
GF_INLINE void split_pairs(Vec<float> first, Vec<float> second, Bf16Pair* out, const Parts& parts) {
#pragma GCC unroll 3
  for (int64_t part = 0; part < kParts<float>; ++part) {
    if (part + 1 == kParts<float>) check_last(first, second, parts);
    const Vec<Bf16Pair> words = pair_lanes(first, second);
    store<Bf16Pair>(out + part * parts.stride, words);
    first -= reinterpret_cast<Vec<float>>(words << 16);
    second -= reinterpret_cast<Vec<float>>(words & 0xffff0000u);
  }
}

template <int ACT>
void split_row_impl(const PackRow<float, Bf16Pair>& row) {
  each_row_word<ACT>(row, [&](const float* in, const float* y, int64_t c, Bf16Pair* out) __attribute__((always_inline)) {
    const auto values = [&](int64_t at) __attribute__((always_inline)) {
      const int64_t left = in == nullptr ? 0 : row.channels - at;
      return read_part<ACT>(in + at, ACT == kNone ? nullptr : y + at, left, row.prologue_slope);
    };
    split_neighbours(values(c), values(c + kVectorLanes), out, row.parts);
  });
}

void split_row(const PackRow<float, Bf16Pair>& row) {
  with_activation(row.prologue_y != nullptr, row.prologue_activation, [&](auto act) { split_row_impl<act.value>(row); });
}

template <int ACT>
void split_channels_impl(const PackChannels<float, Bf16Pair>& job) {
  each_shared_word<ACT>(job, [&](const float* in, const float* y, int64_t left, Bf16Pair* out) __attribute__((always_inline)) {
    const auto values = [&](int64_t image, int64_t wanted) __attribute__((always_inline)) {
      return read_part<ACT>(in + image, ACT == kNone ? nullptr : y + image, wanted, job.prologue_slope);
    };
    split_pairs(values(0, left), values(job.second, job.second == 0 ? 0 : left), out, job.parts);
  });
}

void split_channels(const PackChannels<float, Bf16Pair>& job) {
  with_activation(job.prologue_y != nullptr, job.prologue_activation, [&](auto act) { split_channels_impl<act.value>(job); });
}

void split_lines(const float* first, const float* second, Bf16Pair* out, const Parts& parts) {
  for (int64_t v = 0; v < kMatrixLanes; v += kVectorLanes) {
    split_pairs(load<float>(first + v), second == nullptr ? Vec<float>{} : load<float>(second + v), out + v, parts);
  }
}

}  // namespace GF_LEVEL
}  // namespace gan_fast
