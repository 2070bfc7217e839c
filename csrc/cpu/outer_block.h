// Kernel text: the register block of the weight gradients (OuterJob in conv_weight_grad.h), and the folding of few channels.
#pragma once

#include "conv_weight_grad.h"
#include "vec.h"

namespace gan_fast {
namespace GF_LEVEL {

#if GF_VECTOR_BYTES == 64
constexpr int kRows = 14;
#else
constexpr int kRows = 6;
#endif

// Products in one chain of sums, which are then added up: one of 640 had 2.4 times the error of PyTorch's.
constexpr int64_t kOuterChain = 160;

template <int M, int NV, class W>
GF_INLINE void outer_block(const OuterJob<W>& job, const W* block, Sum<W>* sums, const char*& ahead, int64_t ahead_step) {
  using T = Sum<W>;
  constexpr int lanes = VecOf<T>::lanes;
  Vec<T> acc[M][NV];
  const auto begin = [&]() __attribute__((always_inline)) {
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) acc[i][v] = Vec<T>{};
    }
  };
  const auto add_up = [&]() __attribute__((always_inline)) {
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) {
        T* sum = sums + (i * 2 + v) * lanes;
        store<T>(sum, load<T>(sum) + acc[i][v]);
      }
    }
  };
  begin();
  int64_t left = kOuterChain;
  for (int64_t image = 0; image < job.images; ++image) {
    for (int64_t line = 0; line < job.lines; ++line) {
      const W* a = block + image * job.a_image + line * job.a_line;
      const W* b = job.b + image * job.b_image + line * job.b_line;
      for (int64_t rest = job.length; rest > 0;) {
        if (left == 0) {
          add_up();
          begin();
          left = kOuterChain;
        }
        const int64_t count = rest < left ? rest : left;
        for (int64_t k = 0; k < count; ++k, a += job.a_pixel, b += job.b_pixel) {
          Vec<W> right[NV];
#pragma GCC unroll 2
          for (int v = 0; v < NV; ++v) right[v] = load<W>(b + v * lanes);
          fetch(ahead);
          ahead += ahead_step;
#pragma GCC unroll 16
          for (int i = 0; i < M; ++i) {
            const Vec<W> element = splat<W>(a[i]);
#pragma GCC unroll 2
            for (int v = 0; v < NV; ++v) add_product(acc[i][v], element, right[v]);
          }
        }
        rest -= count;
        left -= count;
      }
    }
  }
  add_up();
}

template <int M, int NV, class W>
void outer_rows(const OuterJob<W>& job) {
  const char* ahead[2] = {first_fetch(job.ahead[0], job.b), first_fetch(job.ahead[1], job.b)};
  const W* a = job.a;
  Sum<W>* sums = job.sums;
  for (int64_t block = 0; block < job.blocks; ++block, a += job.a_block, sums += job.sums_block) {
    const char* at = ahead[block % 2];  // in a register
    outer_block<M, NV, W>(job, a, sums, at, job.ahead[block % 2].step);
    ahead[block % 2] = at;
  }
}

template <int M, class W>
void outer_width(const OuterJob<W>& job) {
  if (job.narrow) {
    outer_rows<M, 1>(job);
  } else {
    outer_rows<M, 2>(job);
  }
}

template <class W>
void outer(const OuterJob<W>& job) {
  switch (job.rows) {
    case 1: return outer_width<1>(job);
    case 2: return outer_width<2>(job);
    case 3: return outer_width<3>(job);
    case 4: return outer_width<4>(job);
    case 5: return outer_width<5>(job);
    case 6: return outer_width<6>(job);
#if GF_VECTOR_BYTES == 64
    case 7: return outer_width<7>(job);
    case 8: return outer_width<8>(job);
    case 9: return outer_width<9>(job);
    case 10: return outer_width<10>(job);
    case 11: return outer_width<11>(job);
    case 12: return outer_width<12>(job);
    case 13: return outer_width<13>(job);
    case 14: return outer_width<14>(job);
#endif
  }
}

template <class T>
void fold_line(const FoldLine<T>& job) {
  constexpr int lanes = VecOf<T>::lanes;
  const int64_t piece = job.taps_x * job.channels;
  for (int64_t p = 0; p < job.pixels; ++p) {
    T* to = job.to + p * job.to_pixel;
    for (int64_t ky = 0; ky < job.taps_y; ++ky, to += piece) {
      const T* from = job.from + p * job.from_pixel + ky * job.from_tap_y;
      if (job.from_tap_x == job.channels) {
        for (int64_t i = 0; i < piece; i += lanes) store<T>(to + i, load<T>(from + i));
      } else {
        for (int64_t kx = 0; kx < job.taps_x; ++kx) {
          for (int64_t c = 0; c < job.channels; ++c) to[kx * job.channels + c] = from[kx * job.from_tap_x + c];
        }
      }
    }
  }
}

}  // namespace GF_LEVEL
}  // namespace gan_fast
