// Kernel text: parts of vectors of bf16, or of floats.
#pragma once

#include "common/activation.h"
#include "conv_weight_grad.h"
#include "gather_conv.h"
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

template <int N>
struct Number {
  static constexpr int value = N;
};

// use(Number<ACT>) of the activation, or of none.
template <class Use>
GF_INLINE void with_activation(bool any, int activation, const Use& use) {
  switch (any ? activation : kNone) {
    case kRelu:
      return use(Number<kRelu>{});
    case kLeakyRelu:
      return use(Number<kLeakyRelu>{});
    case kTanh:
      return use(Number<kTanh>{});
    case kSigmoid:
      return use(Number<kSigmoid>{});
    default:
      return use(Number<kNone>{});
  }
}

// The words of a packed row, a vector at a time: put(pixel, y, channel, out) with its first channel; no pixel where the row lies outside, and no
// y without an activation.
template <int ACT, class S, class Put>
GF_INLINE void each_row_word(const PackRow<S, Bf16Pair>& row, const Put& put) {
  constexpr int64_t block_channels = 2 * kChannelBlock;
  const int64_t blocks = ceil_div(row.channels, block_channels), pixel = row.pixel, block_stride = row.block_stride;
  for (int64_t j = 0; j < row.columns; ++j) {
    const int64_t column = row.first + j * row.step;
    const bool inside = row.input != nullptr && column >= 0 && column < row.width;
    const S* in = inside ? row.input + column * row.pixel_stride : nullptr;
    const S* y = ACT == kNone || !inside ? nullptr : row.prologue_y + column * row.pixel_stride;
    if (inside) prefetch(in + kPrefetchPixels * row.step * row.pixel_stride, row.channels * static_cast<int64_t>(sizeof(S)));
    Bf16Pair* out = row.tile + j * pixel;
    for (int64_t b = 0; b < blocks; ++b, out += block_stride) {
      for (int64_t v = 0; v < kChannelBlock; v += kVectorLanes) put(in, y, b * block_channels + 2 * v, out + v);
    }
  }
}

// The words that two images share, a vector at a time: put(in, y, left, out) with the first image's channels, of which `left` are wanted, or
// none; no y without an activation. Pixels are written in order, so what a whole vector writes too far is overwritten by the next pixel.
template <int ACT, class S, class Put>
GF_INLINE void each_shared_word(const PackChannels<S, Bf16Pair>& job, const Put& put) {
  for (int64_t j = 0; j < job.columns; ++j) {
    const int64_t column = job.first + j * job.step;
    const bool inside = job.input != nullptr && column >= 0 && column < job.width;
    const S* in = inside ? job.input + column * job.pixel_stride : nullptr;
    const S* y = ACT == kNone || !inside ? nullptr : job.prologue_y + column * job.pixel_stride;
    if (inside) {
      const int64_t ahead = kPrefetchPixels * job.step * job.pixel_stride;
      prefetch(in + ahead, job.channels * static_cast<int64_t>(sizeof(S)));
      prefetch(in + job.second + ahead, job.channels * static_cast<int64_t>(sizeof(S)));
    }
    Bf16Pair* block = job.out + j * job.out_pixel;
    for (int64_t c = 0; c < job.channels; c += job.packed, block += job.out_block) {
      const int64_t valid = inside ? (job.channels - c < job.packed ? job.channels - c : job.packed) : 0;
      for (int64_t v = 0; v < job.packed; v += kVectorLanes) {
        put(in + c + v, ACT == kNone ? nullptr : y + c + v, valid - v, block + v);
      }
    }
  }
}

}  // namespace GF_LEVEL
}  // namespace gan_fast
