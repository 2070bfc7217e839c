// The gradient through an activation, from its output: out = g * act'(y).
#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace gan_fast {

// grad_output, y (the activated output) and out: n elements each; out may be either of the two.
// leaky_relu needs slope > 0: only then does y have the sign of its argument.
struct ActGrad {
  int dtype;  // 0 float, 1 double, 2 bfloat16 (computed in float)
  int64_t n;
  const void* grad_output;
  const void* y;
  void* out;
  int activation;
  double slope;
};

// Every element depends on its own inputs only, so the result has the same bits for any number of threads.
void act_grad(const ActGrad& args, int threads);

// The kernel of one piece: elements begin .. end - 1.
struct ActGradTable {
  void (*f32)(const ActGrad& args, int64_t begin, int64_t end);
  void (*f64)(const ActGrad& args, int64_t begin, int64_t end);  // portable level only
  void (*bf16)(const ActGrad& args, int64_t begin, int64_t end);
};

GAN_FAST_DECLARE_TABLE(ActGradTable, act_grad_table)

}  // namespace gan_fast
