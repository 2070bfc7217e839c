// Kernels whose words are pairs of bf16: twice the products of an FMA in each instruction. Their text is bf16_pairs-inl.h.
//
// Native at the levels avx512_bf16 and amx_bf16. Elsewhere a product of pairs would be emulated, which is exact enough to prove the text and too slow
// for anything else: tests ask for that with set_emulated_pairs.
#pragma once

#include "conv_weight_grad.h"
#include "gather_conv.h"
#include "isa.h"
#include "winograd_conv.h"
#include "words.h"

namespace gan_fast {

struct PairKernels {
  int pixels;  // as in GatherKernels
  int few_pixels_wide;
  int rows;  // as in WeightGradKernels
  int vector_bytes;
  GatherFunctions<Bf16, Bf16Pair> gather;
  WeightGradFunctions<Bf16, Bf16Pair> weight_grad;
  WinogradOperands<float, Bf16Pair> winograd_two, winograd_three;  // by the outputs of a piece; the second not for weight gradients
};

// Those of the level in use, whose other kernels have vectors of the same length; null where pairs do not pay.
const PairKernels* pair_kernels();

// Test hook: emulated pairs at the levels portable and avx512.
void set_emulated_pairs(bool on);

// What serves tensors of S in words W at the level in use.
template <class S, class W>
struct GatherEngine {
  int pixels, few_pixels_wide, vector_bytes;
  const GatherFunctions<S, W>& run;
};

template <class S, class W>
GatherEngine<S, W> gather_engine() {
  if constexpr (kPerWord<W> == 1) {
    const GatherKernels& table = gather_kernels_for<S>();
    return {table.pixels, table.few_pixels_wide, table.vector_bytes, functions_of<S>(table)};
  } else {
    const PairKernels& table = *pair_kernels();
    return {table.pixels, table.few_pixels_wide, table.vector_bytes, table.gather};
  }
}

template <class S, class W>
const WinogradOperands<Arithmetic<S>, W>& winograd_operands(int outputs) {
  if constexpr (kPerWord<W> == 1) {
    return functions_of<S>(winograd_kernels_for<S>().of(outputs)).operands;
  } else {
    const PairKernels& table = *pair_kernels();
    return outputs == 2 ? table.winograd_two : table.winograd_three;
  }
}

}  // namespace gan_fast
