// Kernel text: the register block of the gather engine where output channels are few (FewJob in gather_conv.h).
#pragma once

#include <utility>

#include "common/activation.h"
#include "gather_conv.h"
#include "vec.h"
#include "vec_math.h"

namespace gan_fast {
namespace GF_LEVEL {

#if GF_VECTOR_BYTES == 64
constexpr int kFewPixels = 14;
#else
constexpr int kFewPixels = 8;
#endif

// Each loaded pixel vector feeds up to `TAPS` accumulators, so the loads cost 1/TAPS of the FMAs.
// PACKED: neighbouring pixels are kChannelBlock words apart, from columns[0] on.
template <int P, int TAPS, bool PACKED, class W>
void few_group(Vec<Sum<W>>* sums, const W* const* columns, int64_t block_stride, int64_t blocks, const W* weights, const char* ahead,
               int64_t step) {
  using T = Sum<W>;
  constexpr int lanes = VecOf<T>::lanes;
  Vec<T> acc[P];
#pragma GCC unroll 16
  for (int i = 0; i < P; ++i) acc[i] = sums[i];
  int64_t at = 0;
  for (int64_t b = 0; b < blocks; ++b, at += block_stride, weights += TAPS * kChannelBlock, ahead += 2 * step) {
    fetch(ahead);
    fetch(ahead + step);
    for (int v = 0; v < kChannelBlock; v += lanes) {
      Vec<W> weight[TAPS];
#pragma GCC unroll 8
      for (int k = 0; k < TAPS; ++k) weight[k] = load<W>(weights + k * kChannelBlock + v);
#pragma GCC unroll 32
      for (int j = 0; j < P + TAPS - 1; ++j) {
        const Vec<W> x = load<W>(PACKED ? columns[0] + at + j * kChannelBlock + v : columns[j] + at + v);
#pragma GCC unroll 8
        for (int k = 0; k < TAPS; ++k) {
          if (j - k >= 0 && j - k < P) add_product(acc[j - k], x, weight[k]);
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < P; ++i) sums[i] = acc[i];
}

template <int P, bool PACKED, class S, class W>
GF_INLINE void few_groups(const FewJob<S, W>& job, int64_t first, Vec<Sum<W>>* sums, const char* ahead) {
  const W* columns[P + kFewTaps - 1];
  for (int64_t g = 0; g < job.group_count; ++g) {
    const FewTapGroup<W>& group = job.groups[g];
    if (PACKED) {
      columns[0] = group.row + (first + group.column) * kChannelBlock;
    } else {
      for (int j = 0; j < P + group.taps - 1; ++j) {
        const int64_t column = first + group.column + j * job.column_step;
        columns[j] = column >= 0 && column < job.columns ? group.row + column * job.column_stride : job.zeros;
      }
    }
    const W* weights = job.weights + group.weights;
    const char* at = ahead + 2 * g * job.blocks * job.ahead.step;
    switch (group.taps) {
      case 1: few_group<P, 1, PACKED>(sums, columns, job.block_stride, job.blocks, weights, at, job.ahead.step); break;
      case 2: few_group<P, 2, PACKED>(sums, columns, job.block_stride, job.blocks, weights, at, job.ahead.step); break;
      case 3: few_group<P, 3, PACKED>(sums, columns, job.block_stride, job.blocks, weights, at, job.ahead.step); break;
      case 4: few_group<P, 4, PACKED>(sums, columns, job.block_stride, job.blocks, weights, at, job.ahead.step); break;
      case 5: few_group<P, 5, PACKED>(sums, columns, job.block_stride, job.blocks, weights, at, job.ahead.step); break;
      case 6: few_group<P, 6, PACKED>(sums, columns, job.block_stride, job.blocks, weights, at, job.ahead.step); break;
      case 7: few_group<P, 7, PACKED>(sums, columns, job.block_stride, job.blocks, weights, at, job.ahead.step); break;
      case 8: few_group<P, 8, PACKED>(sums, columns, job.block_stride, job.blocks, weights, at, job.ahead.step); break;
    }
  }
}

// One step of a transposing tree: halves the lanes that each sum still occupies, so that two vectors fit into one. In each group of
// 2 * half lanes, the result's first half comes from a (lanes 0 .. lanes - 1 of the pair), its second from b.
constexpr int fold_source(int lane, int half, int lanes) {
  return (lane % (2 * half) < half ? 0 : lanes) + lane / (2 * half) * (2 * half) + lane % half;
}

#ifdef __clang__
template <int HALF, class V, int... LANE>
GF_INLINE V fold_lanes(V a, V b, std::integer_sequence<int, LANE...>) {
  constexpr int lanes = sizeof...(LANE);
  return __builtin_shufflevector(a, b, fold_source(LANE, HALF, lanes)...) +
         __builtin_shufflevector(a, b, (fold_source(LANE, HALF, lanes) + HALF)...);
}

template <int HALF, class T>
GF_INLINE Vec<T> fold_pair(Vec<T> a, Vec<T> b) {
  return fold_lanes<HALF>(a, b, std::make_integer_sequence<int, VecOf<T>::lanes>{});
}
#else
// GCC knows clang's builtin from version 12 on.
template <int HALF, class T>
GF_INLINE Vec<T> fold_pair(Vec<T> a, Vec<T> b) {
  constexpr int lanes = VecOf<T>::lanes;
  decltype(a < b) low{}, high{};
#pragma GCC unroll 16
  for (int i = 0; i < lanes; ++i) {
    low[i] = fold_source(i, HALF, lanes);
    high[i] = low[i] + HALF;
  }
  return __builtin_shuffle(a, b, low) + __builtin_shuffle(a, b, high);
}
#endif

// Lane i of the result is the sum of all lanes of v[i] (HALF = lanes / 2): two shuffles and an add per vector, where a horizontal
// sum of each would take a dozen.
template <int HALF, class T>
GF_INLINE Vec<T> sum_each(const Vec<T>* v) {
  if constexpr (HALF == 0) {
    return v[0];
  } else {
    return fold_pair<HALF, T>(sum_each<HALF / 2, T>(v), sum_each<HALF / 2, T>(v + HALF));
  }
}

template <int P, bool PACKED, class S, class W>
void few_segments(const FewJob<S, W>& job) {
  using T = Sum<W>;
  constexpr int lanes = VecOf<T>::lanes;
  constexpr int vectors = (P + lanes - 1) / lanes;
  const char* ahead = first_fetch(job.ahead, job.weights);
  for (int64_t s = 0; s < job.segments; ++s) {
    Vec<T> sums[vectors * lanes];
    for (int i = 0; i < vectors * lanes; ++i) sums[i] = Vec<T>{};
    few_groups<P, PACKED>(job, job.segment_in[s], sums, ahead + 2 * s * job.group_count * job.blocks * job.ahead.step);
    T values[vectors * lanes];
    for (int v = 0; v < vectors; ++v) {
      const Vec<T> value = sum_each<lanes / 2, T>(sums + v * lanes) + job.bias;
      store<T>(values + v * lanes, activate(value, job.slope, job.activation));
    }
    S* out = job.output + job.segment_out[s];
    for (int64_t i = 0; i < job.segment_valid[s]; ++i) out[i * job.out_pixel_stride] = narrow<S>(values[i]);
  }
}

template <bool PACKED, class S, class W>
void few_of(const FewJob<S, W>& job) {
  if (job.wide) {
    few_segments<kFewPixels, PACKED>(job);
  } else {
    few_segments<kFewPixels / 2, PACKED>(job);
  }
}

template <class S, class W>
void few(const FewJob<S, W>& job) {
  if (job.packed) {
    few_of<true>(job);
  } else {
    few_of<false>(job);
  }
}

}  // namespace GF_LEVEL
}  // namespace gan_fast
