// Kernel text: the register block of the gather engines (GemmJob in gather_conv.h).
//
// It is `pixels` x 2 vectors: 14 x 2 accumulators, 2 weight vectors and one broadcast fill the 32 registers of AVX-512 and keep its two
// FMA pipes busy with 16 loads per 28 FMAs; 6 x 2 fill the 16 of AVX2 and SSE2/NEON.
#pragma once

#include "common/activation.h"
#include "gather_conv.h"
#include "vec.h"
#include "vec_math.h"

namespace gan_fast {
namespace GF_LEVEL {

#define GF_INLINE static inline __attribute__((always_inline))

#if GF_VECTOR_BYTES == 64
constexpr int kPixels = 14;
#else
constexpr int kPixels = 6;
#endif

// Runs in a register block of runs of length L, and the block's pixels.
constexpr int runs_of(int length) {
  const int runs = kPixels / length;
  return runs > kMaxRuns ? kMaxRuns : runs;
}

template <int L, int NV, class W>
GF_INLINE void multiply_block(const GemmProduct<W>& job, const int64_t* run_in, Sum<W>* sums) {
  using T = Sum<W>;
  constexpr int R = runs_of(L);
  constexpr int lanes = VecOf<T>::lanes;
  const W* base[R];
  for (int r = 0; r < R; ++r) base[r] = job.tile + run_in[r];
  Vec<T> acc[R * L][NV];
#pragma GCC unroll 16
  for (int i = 0; i < R * L; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) acc[i][v] = Vec<T>{};
  }
  const W* panel = job.panel;
  for (int64_t s = 0; s < job.step_count; ++s) {
    const int64_t offset = job.steps[s].offset;
    const int64_t depth = job.steps[s].depth;
    for (int64_t c = 0; c < depth; ++c, panel += 2 * lanes) {
      Vec<W> weight[NV];
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) weight[v] = load<W>(panel + v * lanes);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const W* a = base[r] + offset + c;
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i) {
          const Vec<W> x = splat<W>(a[i * kChannelBlock]);
#pragma GCC unroll 2
          for (int v = 0; v < NV; ++v) add_product(acc[r * L + i][v], x, weight[v]);
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

// Not inlined: what follows the sums differs with the output's type, they do not.
template <int L, int NV, class W>
__attribute__((noinline)) void multiply_blocks(const GemmProduct<W>& job, int64_t begin, int64_t end) {
  constexpr int R = runs_of(L);
  constexpr int block_sums = R * L * 2 * VecOf<Sum<W>>::lanes;
  for (int64_t b = begin; b < end; ++b) multiply_block<L, NV, W>(job, job.run_in + b * R, job.sums + b * block_sums);
}

template <class W>
using MultiplyBlocks = void (*)(const GemmProduct<W>&, int64_t begin, int64_t end);

template <int NV, class W>
MultiplyBlocks<W> multiply_blocks_of(int length) {
  switch (length) {
    case 1: return multiply_blocks<1, NV, W>;
    case 2: return multiply_blocks<2, NV, W>;
    case 3: return multiply_blocks<3, NV, W>;
    case 4: return multiply_blocks<4, NV, W>;
    case 5: return multiply_blocks<5, NV, W>;
#if GF_VECTOR_BYTES == 64
    case 6: return multiply_blocks<6, NV, W>;
    case 7: return multiply_blocks<7, NV, W>;
    case 8: return multiply_blocks<8, NV, W>;
    case 9: return multiply_blocks<9, NV, W>;
    case 10: return multiply_blocks<10, NV, W>;
    case 11: return multiply_blocks<11, NV, W>;
    case 12: return multiply_blocks<12, NV, W>;
    case 13: return multiply_blocks<13, NV, W>;
#endif
    default: return multiply_blocks<kPixels, NV, W>;
  }
}

// FULL: every lane of both vectors (of one, if NV is 1) is an output channel.
template <int ACT, int NV, bool FULL, class S>
void store_block(const GemmStore<S>& job, const int64_t* run_out, const Arithmetic<S>* sums, int runs, int run_length,
                 int64_t out_lanes) {
  using T = Arithmetic<S>;
  constexpr int lanes = VecOf<T>::lanes;
  Vec<T> bias[NV];
  for (int v = 0; v < NV; ++v) bias[v] = job.bias == nullptr ? Vec<T>{} : load<T>(job.bias + v * lanes);
  const int64_t left = out_lanes - (NV - 1) * lanes;
  for (int r = 0; r < runs; ++r) {
    if (run_out[r] < 0) continue;
    S* out = job.output + run_out[r];
    const T* sum = sums + r * run_length * 2 * lanes;
    for (int i = 0; i < run_length; ++i, out += job.out_pixel_stride, sum += 2 * lanes) {
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) {
        const Vec<T> value = activate<ACT>(load<T>(sum + v * lanes) + bias[v], job.slope);
        if (!FULL && v == NV - 1) {
          write_first<S>(out + v * lanes, value, left);
        } else if (FULL && job.stream) {
          write_stream<S>(out + v * lanes, value);
        } else {
          write<S>(out + v * lanes, value);
        }
      }
    }
  }
}

template <int NV, bool FULL, class S>
void finish_block(const GemmStore<S>& job, const int64_t* run_out, const Arithmetic<S>* sums, int runs, int run_length,
                  int64_t out_lanes) {
  switch (job.activation) {
    case kRelu:
      return store_block<kRelu, NV, FULL>(job, run_out, sums, runs, run_length, out_lanes);
    case kLeakyRelu:
      return store_block<kLeakyRelu, NV, FULL>(job, run_out, sums, runs, run_length, out_lanes);
    case kTanh:
      return store_block<kTanh, NV, FULL>(job, run_out, sums, runs, run_length, out_lanes);
    case kSigmoid:
      return store_block<kSigmoid, NV, FULL>(job, run_out, sums, runs, run_length, out_lanes);
    default:
      return store_block<kNone, NV, FULL>(job, run_out, sums, runs, run_length, out_lanes);
  }
}

template <int NV, class S, class W>
void gemm_blocks(const GemmJob<S, W>& job) {
  constexpr int lanes = VecOf<Sum<W>>::lanes;
  const int length = job.run_length, runs = runs_of(length);
  const MultiplyBlocks<W> multiply = multiply_blocks_of<NV, W>(length);
  if (!job.finish) return multiply(job, 0, job.blocks);
  constexpr int64_t kTogether = 4;  // whose sums stay in L1 until they are stored
  for (int64_t begin = 0; begin < job.blocks; begin += kTogether) {
    const int64_t end = begin + kTogether < job.blocks ? begin + kTogether : job.blocks;
    multiply(job, begin, end);
    for (int64_t b = begin; b < end; ++b) {
      const Sum<W>* sums = job.sums + b * runs * length * 2 * lanes;
      if (job.out_lanes == NV * lanes) {
        finish_block<NV, true, S>(job, job.run_out + b * runs, sums, runs, length, job.out_lanes);
      } else {
        finish_block<NV, false, S>(job, job.run_out + b * runs, sums, runs, length, job.out_lanes);
      }
    }
  }
#if GF_VECTOR_BYTES > 16
  if (job.stream) _mm_sfence();
#endif
}

template <class S, class W>
void gemm(const GemmJob<S, W>& job) {
  if (job.out_lanes <= VecOf<Sum<W>>::lanes) {
    gemm_blocks<1>(job);
  } else {
    gemm_blocks<2>(job);
  }
}

}  // namespace GF_LEVEL
}  // namespace gan_fast
