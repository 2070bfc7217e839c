// How two numbers are multiplied on a CUDA device, and the order in which a warp's 32 threads hold a matrix product's parts.
//
// A *word* is what a matrix unit takes as one operand of a thread: two 16-bit numbers or one float. In words the unit's
// instructions m16n8k16 (16-bit) and m16n8k8 (TF32) are one shape: 16 rows by 8 columns by 8 words. A thread's lane says
// group = lane / 4 and place = lane % 4; it holds
//
//   A  word place of row group, word place of row group + 8, word place + 4 of row group, word place + 4 of row group + 8
//   B  words place and place + 4 of column group
//   C  columns 2 place and 2 place + 1 of row group, the same of row group + 8
//
// What a sum runs over may be numbered in any order, as long as A and B agree: kernels use that to load 16 bytes at a time.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define GF_DEVICE __device__ __forceinline__
#define GF_BOTH __host__ __device__ __forceinline__
#define GF_UNROLL _Pragma("unroll")
#define GF_ROLLED _Pragma("unroll 1")
#else  // tests/cuda_emulation.cpp runs the same text on a CPU
#define GF_DEVICE inline
#define GF_BOTH inline
#define GF_UNROLL
#define GF_ROLLED
#endif

namespace gan_fast::cuda {

constexpr int kWarp = 32, kWarps = 8, kThreads = kWarp * kWarps;
constexpr int kRows = 16, kColumns = 8, kWords = 8;  // of one product of the matrix unit

// kIeee: float32 by fused multiply-adds, without the matrix unit.
enum Product : int { kBfloat16 = 0, kFloat16 = 1, kTf32 = 2, kIeee = 3 };

constexpr bool is_half(Product p) { return p == kBfloat16 || p == kFloat16; }

// A tensor's element as its bits.
template <bool Half>
struct Bits {
  using type = uint32_t;
};
template <>
struct Bits<true> {
  using type = uint16_t;
};
template <Product P>
using Element = typename Bits<is_half(P)>::type;

template <Product P>
constexpr int kPerWord = is_half(P) ? 2 : 1;

// 16 bytes of consecutive elements.
struct alignas(16) Chunk {
  uint32_t word[4];
};
template <Product P>
constexpr int kPerChunk = 4 * kPerWord<P>;

GF_BOTH int lane_group(int lane) { return lane / 4; }
GF_BOTH int lane_place(int lane) { return lane % 4; }

GF_BOTH int ceil_div(int a, int b) { return (a + b - 1) / b; }
GF_BOTH int lesser(int a, int b) { return a < b ? a : b; }
GF_BOTH int greater(int a, int b) { return a > b ? a : b; }

}  // namespace gan_fast::cuda
