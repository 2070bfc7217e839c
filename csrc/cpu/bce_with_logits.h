// Binary cross entropy of a logit, and its derivative, in one pass over memory.
//
//   loss = w * [(1 - t) * x + (1 + (p - 1) * t) * log(1 + exp(-x))]         as torch.nn.functional.binary_cross_entropy_with_logits
//   d loss / d x = w * [(1 - t) * s(x) - p * t * s(-x)],   s(x) = 1 / (1 + exp(-x))
//
// computed without the cancellation of the first form: for x < 0 the linear part is -x * t * p and the logarithm that of
// 1 + exp(x); neither part of the derivative subtracts s from 1. (At x = -inf and t > 0 the loss is +inf; torch has NaN.)
#pragma once

#include <cstdint>

#include "common/reduction.h"
#include "cpu/isa.h"

namespace gan_fast {

// All arrays: n contiguous elements of the dtype (0 float, 1 double, 2 bfloat16: computed in float, sums before they are rounded).
struct BceWithLogits {
  int dtype;
  int64_t n;
  const void* x;           // logits
  const void* target;      // t, or null: target_value for every element
  double target_value;
  const void* weight;      // w, or null: 1
  const void* pos_weight;  // p, broadcast to n by the caller, or null: 1
  int reduction;
  void* loss;  // none: n elements. mean, sum: one (mean of no elements: NaN, as torch has it)
  void* grad;  // n elements: derivative of the reduced loss (mean: divided by n), or null
};

// Sums are taken in double over fixed pieces and then over the pieces in order: same bits for any number of threads.
// Throws std::bad_alloc.
void bce_with_logits(const BceWithLogits& args, int threads);

constexpr int64_t kBcePiece = 4096;  // elements

// One piece, at most kBcePiece elements from `begin` on. Returns the sum of its losses; stores them if reduction is none.
struct BceTable {
  double (*f32)(const BceWithLogits& args, int64_t begin, int64_t count);
  double (*f64)(const BceWithLogits& args, int64_t begin, int64_t count);  // portable level only
  double (*bf16)(const BceWithLogits& args, int64_t begin, int64_t count);
};

GAN_FAST_DECLARE_TABLE(BceTable, bce_table)

}  // namespace gan_fast
