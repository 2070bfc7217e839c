// What a kernel's text is written against, on a device: the threads of a block, their registers, memory, the matrix unit.
//
// The text calls threads(f) or warps(f) for what all threads do, sync() between what they hand each other, and keeps a thread's
// registers in PerThread. Here each thread runs its own part; tests/cuda_emulation.h has a machine of the same interface that
// runs all parts one after the other on a CPU.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "products.h"

namespace gan_fast::cuda {

struct Device {
  template <class T>
  struct PerThread {
    T own;
    GF_DEVICE T& operator[](int) { return own; }
  };

  template <class F>
  GF_DEVICE void threads(F f) {
    f(static_cast<int>(threadIdx.x));
  }
  template <class F>
  GF_DEVICE void warps(F f) {
    f(static_cast<int>(threadIdx.x) / kWarp);
  }
  // Within warps(): f(lane, thread of the block).
  template <class F>
  GF_DEVICE void lanes(int, F f) {
    f(static_cast<int>(threadIdx.x) % kWarp, static_cast<int>(threadIdx.x));
  }
  GF_DEVICE void sync() { __syncthreads(); }

  template <class T>
  GF_DEVICE T load(const T* p) {
    return __ldg(p);
  }
  GF_DEVICE Chunk load_chunk(const void* p) {
    const uint4 v = __ldg(static_cast<const uint4*>(p));
    return {{v.x, v.y, v.z, v.w}};
  }
  template <class T>
  GF_DEVICE void store(T* p, T value) {
    *p = value;
  }
  GF_DEVICE void store_chunk(void* p, const Chunk& c) {
    *static_cast<uint4*>(p) = make_uint4(c.word[0], c.word[1], c.word[2], c.word[3]);
  }

  // Whether this block is the last of `blocks` to come here; what the others stored before is then seen by load_fresh. The
  // counter counts round to 0, ready for the next launch.
  GF_DEVICE bool arrive_last(uint32_t* counter, int blocks) {
    __threadfence();
    const bool last = atomicInc(counter, static_cast<uint32_t>(blocks - 1)) == static_cast<uint32_t>(blocks - 1);
    __threadfence();
    return last;
  }
  GF_DEVICE double load_fresh(const double* p) { return __ldcg(p); }

  template <Product P>
  GF_DEVICE float widen(Element<P> bits) {
    if constexpr (P == kBfloat16) {
      return __uint_as_float(static_cast<uint32_t>(bits) << 16);
    } else if constexpr (P == kFloat16) {
      return __half2float(__ushort_as_half(bits));
    } else {
      return __uint_as_float(bits);
    }
  }
  template <Product P>
  GF_DEVICE Element<P> narrow(float x) {
    if constexpr (P == kBfloat16) {
      return __bfloat16_as_ushort(__float2bfloat16_rn(x));
    } else if constexpr (P == kFloat16) {
      return __half_as_ushort(__float2half_rn(x));
    } else {
      return __float_as_uint(x);
    }
  }
  GF_DEVICE uint32_t round_to_tf32(uint32_t bits) {
    uint32_t rounded;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__uint_as_float(bits)));
    return rounded;
  }
  GF_DEVICE float as_float(uint32_t bits) { return __uint_as_float(bits); }

  // sums += A B, over the warp; at(thread) -> the thread's part, as products.h says who holds what. a: four words, b: two.
  template <Product P, class Sums, class A, class B>
  GF_DEVICE void multiply(int, Sums sums, A a, B b) {
    static_assert(P != kIeee, "the matrix unit has no IEEE float32");
    float* c = sums(0);
    const uint32_t *x = a(0), *y = b(0);
    if constexpr (P == kBfloat16) {
      asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
          : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
          : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(y[0]), "r"(y[1]));
    } else if constexpr (P == kFloat16) {
      asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
          : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
          : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(y[0]), "r"(y[1]));
    } else {
      asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
          : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
          : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(y[0]), "r"(y[1]));
    }
  }

  // Adds up what the four threads of a group hold; all four get the sum. at(thread) -> float&.
  template <class At>
  GF_DEVICE void sum_over_group(int, At at) {
    float& x = at(0);
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    x += __shfl_xor_sync(0xffffffffu, x, 2);
  }
};

}  // namespace gan_fast::cuda
