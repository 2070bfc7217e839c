// Kernels of gather_conv.h.
#include <utility>

#include "common/activation.h"
#include "gather_conv.h"
#include "gemm_block.h"
#include "vec.h"
#include "vec_math.h"

namespace gan_fast {
namespace GF_LEVEL {

#if GF_VECTOR_BYTES == 64
constexpr int kFewPixels = 14;
#else
constexpr int kFewPixels = 8;
#endif

// ---- packing ------------------------------------------------------------------------------------------------------------------

template <int ACT, class S>
void pack_row_impl(const PackRow<S, Arithmetic<S>>& row) {
  using T = Arithmetic<S>;
  constexpr int lanes = VecOf<T>::lanes;
  const int64_t whole = row.channels / kChannelBlock;
  const int64_t rest = row.channels % kChannelBlock;
  for (int64_t j = 0; j < row.columns; ++j) {
    const int64_t column = row.first + j * row.step;
    T* out = row.tile + j * kChannelBlock;
    if (row.input == nullptr || column < 0 || column >= row.width) {
      for (int64_t b = 0; b < whole + (rest != 0); ++b, out += row.block_stride) {
        for (int v = 0; v < kChannelBlock; v += lanes) store<T>(out + v, Vec<T>{});
      }
      continue;
    }
    const S* in = row.input + column * row.pixel_stride;
    prefetch(in + kPrefetchPixels * row.step * row.pixel_stride, row.channels * static_cast<int64_t>(sizeof(S)));
    const S* y = ACT == kNone ? nullptr : row.prologue_y + column * row.pixel_stride;
    for (int64_t b = 0; b < whole; ++b, out += row.block_stride) {
      for (int v = 0; v < kChannelBlock; v += lanes) {
        Vec<T> value = read<S>(in + b * kChannelBlock + v);
        if constexpr (ACT != kNone) value = act_backward<ACT>(value, read<S>(y + b * kChannelBlock + v), row.prologue_slope);
        store<T>(out + v, value);
      }
    }
    for (int64_t v = 0; rest != 0 && v < kChannelBlock; v += lanes) {
      const int64_t left = rest - v;
      const int64_t c = whole * kChannelBlock + v;
      Vec<T> value{};
      if (left > 0) {
        value = left >= lanes ? read<S>(in + c) : read_first<S>(in + c, left);
        if constexpr (ACT != kNone) {
          value = act_backward<ACT>(value, left >= lanes ? read<S>(y + c) : read_first<S>(y + c, left), row.prologue_slope);
        }
      }
      store<T>(out + v, value);
    }
  }
}

template <class S>
void pack_row(const PackRow<S, Arithmetic<S>>& row) {
  switch (row.prologue_y == nullptr ? kNone : row.prologue_activation) {
    case kRelu:
      return pack_row_impl<kRelu>(row);
    case kLeakyRelu:
      return pack_row_impl<kLeakyRelu>(row);
    case kTanh:
      return pack_row_impl<kTanh>(row);
    case kSigmoid:
      return pack_row_impl<kSigmoid>(row);
    default:
      return pack_row_impl<kNone>(row);
  }
}

template <int ACT, class S>
void pack_line_impl(const PackLine<S>& line) {
  using T = Arithmetic<S>;
  constexpr int lanes = VecOf<T>::lanes;
  int64_t i = 0;
  for (; i + lanes <= line.n; i += lanes) {
    Vec<T> value = read<S>(line.input + i);
    if constexpr (ACT != kNone) value = act_backward<ACT>(value, read<S>(line.prologue_y + i), line.prologue_slope);
    store<T>(line.out + i, value);
  }
  const int64_t left = line.n - i;
  if (left == 0) return;
  Vec<T> value = read_first<S>(line.input + i, left);
  if constexpr (ACT != kNone) value = act_backward<ACT>(value, read_first<S>(line.prologue_y + i, left), line.prologue_slope);
  store_first<T>(line.out + i, value, left);
}

template <class S>
void pack_line(const PackLine<S>& line) {
  switch (line.prologue_y == nullptr ? kNone : line.prologue_activation) {
    case kRelu:
      return pack_line_impl<kRelu>(line);
    case kLeakyRelu:
      return pack_line_impl<kLeakyRelu>(line);
    case kTanh:
      return pack_line_impl<kTanh>(line);
    case kSigmoid:
      return pack_line_impl<kSigmoid>(line);
    default:
      return pack_line_impl<kNone>(line);
  }
}

// ---- few output channels --------------------------------------------------------------------------------------------------------

// Each loaded pixel vector feeds up to `TAPS` accumulators, so the loads cost 1/TAPS of the FMAs.
template <int P, int TAPS, class T>
void few_group(Vec<T>* sums, const T* tile, int64_t block_stride, int64_t blocks, const T* weights, const char* ahead, int64_t step) {
  constexpr int lanes = VecOf<T>::lanes;
  Vec<T> acc[P];
#pragma GCC unroll 16
  for (int i = 0; i < P; ++i) acc[i] = sums[i];
  for (int64_t b = 0; b < blocks; ++b, tile += block_stride, weights += TAPS * kChannelBlock, ahead += 2 * step) {
    fetch(ahead);
    fetch(ahead + step);
    for (int v = 0; v < kChannelBlock; v += lanes) {
      Vec<T> weight[TAPS];
#pragma GCC unroll 8
      for (int k = 0; k < TAPS; ++k) weight[k] = load<T>(weights + k * kChannelBlock + v);
#pragma GCC unroll 32
      for (int j = 0; j < P + TAPS - 1; ++j) {
        const Vec<T> x = load<T>(tile + j * kChannelBlock + v);
#pragma GCC unroll 8
        for (int k = 0; k < TAPS; ++k) {
          if (j - k >= 0 && j - k < P) acc[j - k] += x * weight[k];
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < P; ++i) sums[i] = acc[i];
}

template <int P, class S>
GF_INLINE void few_groups(const FewJob<S>& job, const Arithmetic<S>* tile, Vec<Arithmetic<S>>* sums, const char* ahead) {
  using T = Arithmetic<S>;
  for (int64_t g = 0; g < job.group_count; ++g) {
    const T* in = tile + job.groups[g].offset;
    const T* weights = job.weights + job.groups[g].weights;
    const char* at = ahead + 2 * g * job.blocks * job.ahead.step;
    switch (job.groups[g].taps) {
      case 1: few_group<P, 1>(sums, in, job.block_stride, job.blocks, weights, at, job.ahead.step); break;
      case 2: few_group<P, 2>(sums, in, job.block_stride, job.blocks, weights, at, job.ahead.step); break;
      case 3: few_group<P, 3>(sums, in, job.block_stride, job.blocks, weights, at, job.ahead.step); break;
      case 4: few_group<P, 4>(sums, in, job.block_stride, job.blocks, weights, at, job.ahead.step); break;
      case 5: few_group<P, 5>(sums, in, job.block_stride, job.blocks, weights, at, job.ahead.step); break;
      case 6: few_group<P, 6>(sums, in, job.block_stride, job.blocks, weights, at, job.ahead.step); break;
      case 7: few_group<P, 7>(sums, in, job.block_stride, job.blocks, weights, at, job.ahead.step); break;
      case 8: few_group<P, 8>(sums, in, job.block_stride, job.blocks, weights, at, job.ahead.step); break;
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

template <int P, class S>
void few_segments(const FewJob<S>& job) {
  using T = Arithmetic<S>;
  constexpr int lanes = VecOf<T>::lanes;
  constexpr int vectors = (P + lanes - 1) / lanes;
  const char* ahead = first_fetch(job.ahead, job.weights);
  for (int64_t s = 0; s < job.segments; ++s) {
    Vec<T> sums[vectors * lanes];
    for (int i = 0; i < vectors * lanes; ++i) sums[i] = Vec<T>{};
    few_groups<P>(job, job.tile + job.segment_in[s], sums, ahead + 2 * s * job.group_count * job.blocks * job.ahead.step);
    T values[vectors * lanes];
    for (int v = 0; v < vectors; ++v) {
      const Vec<T> value = sum_each<lanes / 2, T>(sums + v * lanes) + job.bias;
      store<T>(values + v * lanes, activate(value, job.slope, job.activation));
    }
    S* out = job.output + job.segment_out[s];
    for (int64_t i = 0; i < job.segment_valid[s]; ++i) out[i * job.out_pixel_stride] = narrow<S>(values[i]);
  }
}

template <class S>
void few(const FewJob<S>& job) {
  if (job.wide) {
    few_segments<kFewPixels>(job);
  } else {
    few_segments<kFewPixels / 2>(job);
  }
}

extern const GatherKernels gather_kernels = {
    kPixels,
    kFewPixels,
    GF_VECTOR_BYTES,
    {pack_row<float>, pack_line<float>, gemm<float, float>, few<float>},
    {pack_row<Bf16>, pack_line<Bf16>, gemm<Bf16, float>, few<Bf16>},
#if GF_VECTOR_BYTES == 16
    {pack_row<double>, pack_line<double>, gemm<double, double>, few<double>},
#else
    {nullptr, nullptr, nullptr, nullptr},
#endif
};

}  // namespace GF_LEVEL
}  // namespace gan_fast
