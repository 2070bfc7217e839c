// Kernels of gather_conv.h. The register block is `pixels` x 2 vectors: 14 x 2 accumulators, 2 weight vectors and one broadcast fill
// the 32 registers of AVX-512 and keep its two FMA pipes busy with 16 loads per 28 FMAs; 6 x 2 fill the 16 of AVX2 and SSE2/NEON.
#include <utility>

#include "common/activation.h"
#include "gather_conv.h"
#include "vec.h"
#include "vec_math.h"

namespace gan_fast {
namespace GF_LEVEL {

#define GF_INLINE static inline __attribute__((always_inline))

#if GF_VECTOR_BYTES == 64
constexpr int kPixels = 14;
constexpr int kFewPixels = 14;
#else
constexpr int kPixels = 6;
constexpr int kFewPixels = 8;
#endif

// Runs in a register block of runs of length L, and the block's pixels.
constexpr int runs_of(int length) {
  const int runs = kPixels / length;
  return runs > kMaxRuns ? kMaxRuns : runs;
}

// ---- packing ------------------------------------------------------------------------------------------------------------------

template <int ACT, class T>
void pack_row_impl(const PackRow<T>& row) {
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
    const T* in = row.input + column * row.pixel_stride;
    prefetch(in + kPrefetchPixels * row.step * row.pixel_stride, row.channels * static_cast<int64_t>(sizeof(T)));
    const T* y = ACT == kNone ? nullptr : row.prologue_y + column * row.pixel_stride;
    for (int64_t b = 0; b < whole; ++b, out += row.block_stride) {
      for (int v = 0; v < kChannelBlock; v += lanes) {
        Vec<T> value = load<T>(in + b * kChannelBlock + v);
        if constexpr (ACT != kNone) value = act_backward<ACT>(value, load<T>(y + b * kChannelBlock + v), row.prologue_slope);
        store<T>(out + v, value);
      }
    }
    for (int64_t v = 0; rest != 0 && v < kChannelBlock; v += lanes) {
      const int64_t left = rest - v;
      const int64_t c = whole * kChannelBlock + v;
      Vec<T> value{};
      if (left > 0) {
        value = left >= lanes ? load<T>(in + c) : load_first<T>(in + c, left);
        if constexpr (ACT != kNone) {
          value = act_backward<ACT>(value, left >= lanes ? load<T>(y + c) : load_first<T>(y + c, left), row.prologue_slope);
        }
      }
      store<T>(out + v, value);
    }
  }
}

template <class T>
void pack_row(const PackRow<T>& row) {
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

// ---- the register block -------------------------------------------------------------------------------------------------------

template <int L, int NV, class T>
GF_INLINE void multiply_block(const GemmJob<T>& job, const int64_t* run_in, T* sums) {
  constexpr int R = runs_of(L);
  constexpr int lanes = VecOf<T>::lanes;
  const T* base[R];
  for (int r = 0; r < R; ++r) base[r] = job.tile + run_in[r];
  Vec<T> acc[R * L][NV];
#pragma GCC unroll 16
  for (int i = 0; i < R * L; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) acc[i][v] = Vec<T>{};
  }
  const T* panel = job.panel;
  for (int64_t s = 0; s < job.step_count; ++s) {
    const int64_t offset = job.steps[s].offset;
    const int64_t depth = job.steps[s].depth;
    for (int64_t c = 0; c < depth; ++c, panel += 2 * lanes) {
      Vec<T> weight[NV];
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) weight[v] = load<T>(panel + v * lanes);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const T* a = base[r] + offset + c;
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i) {
          const Vec<T> x = splat<T>(a[i * kChannelBlock]);
#pragma GCC unroll 2
          for (int v = 0; v < NV; ++v) acc[r * L + i][v] += x * weight[v];
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < R * L; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) {
      T* sum = sums + (i * 2 + v) * lanes;
      store<T>(sum, job.accumulate ? load<T>(sum) + acc[i][v] : acc[i][v]);
    }
  }
}

// FULL: every lane of both vectors (of one, if NV is 1) is an output channel.
template <int ACT, int NV, bool FULL, class T>
void store_block(const GemmJob<T>& job, const int64_t* run_out, const T* sums, int runs) {
  constexpr int lanes = VecOf<T>::lanes;
  Vec<T> bias[NV];
  for (int v = 0; v < NV; ++v) bias[v] = job.bias == nullptr ? Vec<T>{} : load<T>(job.bias + v * lanes);
  const int64_t left = job.out_lanes - (NV - 1) * lanes;
  for (int r = 0; r < runs; ++r) {
    if (run_out[r] < 0) continue;
    T* out = job.output + run_out[r];
    const T* sum = sums + r * job.run_length * 2 * lanes;
    for (int i = 0; i < job.run_length; ++i, out += job.out_pixel_stride, sum += 2 * lanes) {
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) {
        const Vec<T> value = activate<ACT>(load<T>(sum + v * lanes) + bias[v], job.slope);
        if (!FULL && v == NV - 1) {
          store_first<T>(out + v * lanes, value, left);
        } else if (FULL && job.stream) {
          store_stream<T>(out + v * lanes, value);
        } else {
          store<T>(out + v * lanes, value);
        }
      }
    }
  }
}

template <int NV, bool FULL, class T>
void finish_block(const GemmJob<T>& job, const int64_t* run_out, const T* sums, int runs) {
  switch (job.activation) {
    case kRelu:
      return store_block<kRelu, NV, FULL>(job, run_out, sums, runs);
    case kLeakyRelu:
      return store_block<kLeakyRelu, NV, FULL>(job, run_out, sums, runs);
    case kTanh:
      return store_block<kTanh, NV, FULL>(job, run_out, sums, runs);
    case kSigmoid:
      return store_block<kSigmoid, NV, FULL>(job, run_out, sums, runs);
    default:
      return store_block<kNone, NV, FULL>(job, run_out, sums, runs);
  }
}

template <int L, int NV, class T>
void gemm_blocks(const GemmJob<T>& job) {
  constexpr int R = runs_of(L);
  constexpr int block_sums = R * L * 2 * VecOf<T>::lanes;
  for (int64_t b = 0; b < job.blocks; ++b) {
    T* sums = job.sums + b * block_sums;
    multiply_block<L, NV>(job, job.run_in + b * R, sums);
    if (!job.finish) continue;
    if (job.out_lanes == NV * VecOf<T>::lanes) {
      finish_block<NV, true>(job, job.run_out + b * R, sums, R);
    } else {
      finish_block<NV, false>(job, job.run_out + b * R, sums, R);
    }
  }
#if GF_VECTOR_BYTES > 16
  if (job.stream) _mm_sfence();
#endif
}

template <int L, class T>
void gemm_of_length(const GemmJob<T>& job) {
  if (job.out_lanes <= VecOf<T>::lanes) {
    gemm_blocks<L, 1>(job);
  } else {
    gemm_blocks<L, 2>(job);
  }
}

template <class T>
void gemm(const GemmJob<T>& job) {
  switch (job.run_length) {
    case 1: return gemm_of_length<1>(job);
    case 2: return gemm_of_length<2>(job);
    case 3: return gemm_of_length<3>(job);
    case 4: return gemm_of_length<4>(job);
    case 5: return gemm_of_length<5>(job);
    case 6: return gemm_of_length<6>(job);
#if GF_VECTOR_BYTES == 64
    case 7: return gemm_of_length<7>(job);
    case 8: return gemm_of_length<8>(job);
    case 9: return gemm_of_length<9>(job);
    case 10: return gemm_of_length<10>(job);
    case 11: return gemm_of_length<11>(job);
    case 12: return gemm_of_length<12>(job);
    case 13: return gemm_of_length<13>(job);
    case 14: return gemm_of_length<14>(job);
#endif
  }
}

// ---- few output channels --------------------------------------------------------------------------------------------------------

// Each loaded pixel vector feeds up to `TAPS` accumulators, so the loads cost 1/TAPS of the FMAs.
template <int P, int TAPS, class T>
void few_group(Vec<T>* sums, const T* tile, int64_t block_stride, int64_t blocks, const T* weights) {
  constexpr int lanes = VecOf<T>::lanes;
  Vec<T> acc[P];
#pragma GCC unroll 16
  for (int i = 0; i < P; ++i) acc[i] = sums[i];
  for (int64_t b = 0; b < blocks; ++b, tile += block_stride, weights += TAPS * kChannelBlock) {
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

template <int P, class T>
GF_INLINE void few_groups(const FewJob<T>& job, const T* tile, Vec<T>* sums) {
  for (int64_t g = 0; g < job.group_count; ++g) {
    const T* in = tile + job.groups[g].offset;
    const T* weights = job.weights + job.groups[g].weights;
    switch (job.groups[g].taps) {
      case 1: few_group<P, 1>(sums, in, job.block_stride, job.blocks, weights); break;
      case 2: few_group<P, 2>(sums, in, job.block_stride, job.blocks, weights); break;
      case 3: few_group<P, 3>(sums, in, job.block_stride, job.blocks, weights); break;
      case 4: few_group<P, 4>(sums, in, job.block_stride, job.blocks, weights); break;
      case 5: few_group<P, 5>(sums, in, job.block_stride, job.blocks, weights); break;
      case 6: few_group<P, 6>(sums, in, job.block_stride, job.blocks, weights); break;
      case 7: few_group<P, 7>(sums, in, job.block_stride, job.blocks, weights); break;
      case 8: few_group<P, 8>(sums, in, job.block_stride, job.blocks, weights); break;
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

template <int P, class T>
void few_segments(const FewJob<T>& job) {
  constexpr int lanes = VecOf<T>::lanes;
  constexpr int vectors = (P + lanes - 1) / lanes;
  for (int64_t s = 0; s < job.segments; ++s) {
    Vec<T> sums[vectors * lanes];
    for (int i = 0; i < vectors * lanes; ++i) sums[i] = Vec<T>{};
    few_groups<P>(job, job.tile + job.segment_in[s], sums);
    T values[vectors * lanes];
    for (int v = 0; v < vectors; ++v) {
      const Vec<T> value = sum_each<lanes / 2, T>(sums + v * lanes) + job.bias;
      store<T>(values + v * lanes, activate(value, job.slope, job.activation));
    }
    T* out = job.output + job.segment_out[s];
    for (int64_t i = 0; i < job.segment_valid[s]; ++i) out[i * job.out_pixel_stride] = values[i];
  }
}

template <class T>
void few(const FewJob<T>& job) {
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
    {pack_row<float>, gemm<float>, few<float>},
#if GF_VECTOR_BYTES == 16
    {pack_row<double>, gemm<double>, few<double>},
#else
    {nullptr, nullptr, nullptr},
#endif
};

}  // namespace GF_LEVEL
}  // namespace gan_fast
