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

// More runs leave no register for it.
template <int L>
constexpr bool kFetches = runs_of(L) <= 4;

// In a tile of rows a pair of bf16 begins at any element, odd ones too.
template <class W>
GF_INLINE W unaligned(const char* from) {
  W word;
  __builtin_memcpy(&word, from, sizeof(W));
  return word;
}

template <int L, int NV, class W>
GF_INLINE void multiply_block(const GemmProduct<W>& job, const int64_t* run_in, Sum<W>* sums, const char*& ahead, int64_t ahead_step) {
  using T = Sum<W>;
  constexpr int R = runs_of(L);
  constexpr int lanes = VecOf<T>::lanes;
  constexpr int64_t word = sizeof(W), element = word / kPerWord<W>;  // in bytes
  const int64_t unit = L == 1 && element != word && job.offsets != nullptr ? element : word;
  const char* base[R];
  for (int r = 0; r < R; ++r) base[r] = reinterpret_cast<const char*>(job.tile) + run_in[r] * unit;
  const W* panel = job.panel;
  Vec<T> acc[R * L][NV];
  const auto multiply = [&](int64_t bytes) __attribute__((always_inline)) {
    Vec<W> weight[NV];
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) weight[v] = load<W>(panel + v * lanes);
    if constexpr (kFetches<L>) {
      fetch(ahead);
      ahead += ahead_step;
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const char* a = base[r] + bytes;
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) {
        const Vec<W> x = splat<W>(unaligned<W>(a + i * kChannelBlock * word));
#pragma GCC unroll 2
        for (int v = 0; v < NV; ++v) add_product(acc[r * L + i][v], x, weight[v]);
      }
    }
    panel += 2 * lanes;
  };
  bool accumulate = job.accumulate;
  const int64_t chain = job.chain == 0 ? job.step_count : job.chain;
  int64_t s = 0;
  do {
#pragma GCC unroll 16
    for (int i = 0; i < R * L; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) acc[i][v] = Vec<T>{};
    }
    const int64_t last = job.step_count - s < chain ? job.step_count : s + chain;
    if constexpr (L == 1) {
      // Few channels: a step of a kernel row would be some 12 words, whose exit CPUs mispredict.
      for (; job.offsets != nullptr && s < last; ++s) multiply(job.offsets[s] * element);
    }
    for (; s < last; ++s) {
      const int64_t begin = job.steps[s].offset, end = begin + job.steps[s].depth;
      if (GF_VECTOR_BYTES < 64 && end - begin == kChannelBlock) {
        // The usual step. Its few turns have an exit that CPUs mispredict, after some 100 cycles with so short a block: 4 turns in one.
#pragma GCC unroll 4
        for (int64_t c = 0; c < kChannelBlock; ++c) multiply((begin + c) * word);
      } else {
        for (int64_t c = begin; c < end; ++c) multiply(c * word);
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < R * L; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) {
        T* sum = sums + (i * 2 + v) * lanes;
        store<T>(sum, accumulate ? load<T>(sum) + acc[i][v] : acc[i][v]);
      }
    }
    accumulate = true;
  } while (s < job.step_count);
}

// FULL: every lane of both vectors (of one, if NV is 1) is an output channel. RUNS: runs of one pixel, or 0 for what the arguments say.
template <int ACT, int NV, bool FULL, int RUNS, class S>
void store_block(const GemmStore<S>& job, const int64_t* run_out, const Arithmetic<S>* sums, int any_runs, int any_length, int64_t out_lanes) {
  using T = Arithmetic<S>;
  constexpr int lanes = VecOf<T>::lanes;
  Vec<T> bias[NV];
  for (int v = 0; v < NV; ++v) bias[v] = job.bias == nullptr ? Vec<T>{} : load<T>(job.bias + v * lanes);
  const int64_t left = out_lanes - (NV - 1) * lanes;
  const int runs = RUNS == 0 ? any_runs : RUNS, run_length = RUNS == 0 ? any_length : 1;
#pragma GCC unroll 7
  for (int r = 0; r < runs; ++r) {
    if (run_out[r] < 0) continue;
    S* out = job.output + run_out[r];
    const T* sum = sums + r * run_length * 2 * lanes;
    for (int i = 0; i < run_length; ++i, out += job.out_pixel_stride, sum += 2 * lanes) {
      Vec<T> value[NV];
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) value[v] = activate<ACT>(load<T>(sum + v * lanes) + bias[v], job.slope);
      if constexpr (FULL && NV == 2) {
        write_two<S>(out, value[0], value[1], job.stream);
      } else if constexpr (FULL) {
        job.stream ? write_stream<S>(out, value[0]) : write<S>(out, value[0]);
      } else {
        if constexpr (NV == 2) write<S>(out, value[0]);
        write_first<S>(out + (NV - 1) * lanes, value[NV - 1], left);
      }
    }
  }
}

template <int NV, bool FULL, int RUNS, class S>
void finish_block(const GemmStore<S>& job, const int64_t* run_out, const Arithmetic<S>* sums, int runs, int run_length,
                  int64_t out_lanes) {
  switch (job.activation) {
    case kRelu:
      return store_block<kRelu, NV, FULL, RUNS>(job, run_out, sums, runs, run_length, out_lanes);
    case kLeakyRelu:
      return store_block<kLeakyRelu, NV, FULL, RUNS>(job, run_out, sums, runs, run_length, out_lanes);
    case kTanh:
      return store_block<kTanh, NV, FULL, RUNS>(job, run_out, sums, runs, run_length, out_lanes);
    case kSigmoid:
      return store_block<kSigmoid, NV, FULL, RUNS>(job, run_out, sums, runs, run_length, out_lanes);
    default:
      return store_block<kNone, NV, FULL, RUNS>(job, run_out, sums, runs, run_length, out_lanes);
  }
}

template <int L, int NV, class S, class W>
void gemm_blocks(const GemmJob<S, W>& job) {
  constexpr int R = runs_of(L);
  constexpr int lanes = VecOf<Sum<W>>::lanes;
  const char* ahead[2] = {first_fetch(job.ahead[0], job.panel), first_fetch(job.ahead[1], job.panel)};
  for (int64_t b = 0; b < job.blocks; ++b) {
    Sum<W>* sums = job.sums + b * R * L * 2 * lanes;
    // Inlined, though its code is the same for all S: few input channels make so short sums that a call would cost a tenth.
    const char* at = ahead[b % 2];  // in a register
    multiply_block<L, NV, W>(job, job.run_in + b * R, sums, at, job.ahead[b % 2].step);
    ahead[b % 2] = at;
    if (!job.finish) continue;
    if (job.out_lanes == NV * lanes) {
      finish_block<NV, true, L == 1 ? R : 0, S>(job, job.run_out + b * R, sums, R, L, job.out_lanes);
    } else {
      finish_block<NV, false, L == 1 ? R : 0, S>(job, job.run_out + b * R, sums, R, L, job.out_lanes);
    }
  }
#if GF_VECTOR_BYTES > 16
  if (job.stream) _mm_sfence();
#endif
}

template <int L, class S, class W>
void gemm_of_length(const GemmJob<S, W>& job) {
  if (job.out_lanes <= VecOf<Sum<W>>::lanes) {
    gemm_blocks<L, 1>(job);
  } else {
    gemm_blocks<L, 2>(job);
  }
}

template <class S, class W>
void gemm(const GemmJob<S, W>& job) {
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

}  // namespace GF_LEVEL
}  // namespace gan_fast
