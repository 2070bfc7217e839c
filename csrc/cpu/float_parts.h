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
  constexpr int64_t block_channels = 2 * kChannelBlock;
  const int64_t blocks = ceil_div(row.channels, block_channels), pixel = row.pixel, block_stride = row.block_stride;
  for (int64_t j = 0; j < row.columns; ++j) {
    const int64_t column = row.first + j * row.step;
    const bool inside = row.input != nullptr && column >= 0 && column < row.width;
    const float* in = inside ? row.input + column * row.pixel_stride : nullptr;
    const float* y = ACT == kNone || !inside ? nullptr : row.prologue_y + column * row.pixel_stride;
    if (inside) prefetch(in + kPrefetchPixels * row.step * row.pixel_stride, row.channels * static_cast<int64_t>(sizeof(float)));
    Bf16Pair* out = row.tile + j * pixel;
    for (int64_t b = 0; b < blocks; ++b, out += block_stride) {
      for (int64_t v = 0; v < kChannelBlock; v += kVectorLanes) {
        const int64_t c = b * block_channels + 2 * v;
        if (inside && c < row.channels) {
          const auto values = [&](int64_t at) __attribute__((always_inline)) {
            return read_part<ACT>(in + at, ACT == kNone ? nullptr : y + at, row.channels - at, row.prologue_slope);
          };
          split_neighbours(values(c), values(c + kVectorLanes), out + v, row.parts);
        } else {
          for (int64_t part = 0; part < kParts<float>; ++part) store<Bf16Pair>(out + part * row.parts.stride + v, Vec<Bf16Pair>{});
        }
      }
    }
  }
}

void split_row(const PackRow<float, Bf16Pair>& row) {
  switch (row.prologue_y == nullptr ? kNone : row.prologue_activation) {
    case kRelu:
      return split_row_impl<kRelu>(row);
    case kLeakyRelu:
      return split_row_impl<kLeakyRelu>(row);
    case kTanh:
      return split_row_impl<kTanh>(row);
    case kSigmoid:
      return split_row_impl<kSigmoid>(row);
    default:
      return split_row_impl<kNone>(row);
  }
}

template <int ACT>
void split_channels_impl(const PackChannels<float, Bf16Pair>& job) {
  for (int64_t j = 0; j < job.columns; ++j) {
    const int64_t column = job.first + j * job.step;
    const bool inside = job.input != nullptr && column >= 0 && column < job.width;
    const float* in = inside ? job.input + column * job.pixel_stride : nullptr;
    const float* y = ACT == kNone || !inside ? nullptr : job.prologue_y + column * job.pixel_stride;
    if (inside) {
      const int64_t ahead = kPrefetchPixels * job.step * job.pixel_stride;
      prefetch(in + ahead, job.channels * static_cast<int64_t>(sizeof(float)));
      prefetch(in + job.second + ahead, job.channels * static_cast<int64_t>(sizeof(float)));
    }
    Bf16Pair* block = job.out + j * job.out_pixel;
    for (int64_t c = 0; c < job.channels; c += job.packed, block += job.out_block) {
      const int64_t valid = inside ? (job.channels - c < job.packed ? job.channels - c : job.packed) : 0;
      // Pixels are written in order, so what a whole vector writes too far is overwritten by the next pixel.
      for (int64_t v = 0; v < job.packed; v += kVectorLanes) {
        const auto values = [&](int64_t image, int64_t left) __attribute__((always_inline)) {
          return read_part<ACT>(in + image + c + v, ACT == kNone ? nullptr : y + image + c + v, left, job.prologue_slope);
        };
        split_pairs(values(0, valid - v), values(job.second, job.second == 0 ? 0 : valid - v), block + v, job.parts);
      }
    }
  }
}

void split_channels(const PackChannels<float, Bf16Pair>& job) {
  switch (job.prologue_y == nullptr ? kNone : job.prologue_activation) {
    case kRelu:
      return split_channels_impl<kRelu>(job);
    case kLeakyRelu:
      return split_channels_impl<kLeakyRelu>(job);
    case kTanh:
      return split_channels_impl<kTanh>(job);
    case kSigmoid:
      return split_channels_impl<kSigmoid>(job);
    default:
      return split_channels_impl<kNone>(job);
  }
}

void split_lines(const float* first, const float* second, Bf16Pair* out, const Parts& parts) {
  for (int64_t v = 0; v < kMatrixLanes; v += kVectorLanes) {
    split_pairs(load<float>(first + v), second == nullptr ? Vec<float>{} : load<float>(second + v), out + v, parts);
  }
}

}  // namespace GF_LEVEL
}  // namespace gan_fast
