// y = act(x + bias).
#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace gan_fast {

// x and y: (outer, channels, inner), contiguous; y may be x. bias: (channels) or null. dtype: 0 float, 1 double, 2 bfloat16
// (computed in float).
struct BiasAct {
  int dtype;
  int64_t outer, channels, inner;
  const void* x;
  const void* bias;
  void* y;
  int activation;  // csrc/common/activation.h
  double slope;    // of leaky_relu
};

// Every element depends on its own inputs only, so the result has the same bits for any number of threads.
void bias_act(const BiasAct& args, int threads);

// The kernel of one piece: elements begin .. end - 1 of the flattened tensor. `bias` is what BiasAct has, in the type of the
// arithmetic; where inner is 1 it is repeated to channels + kMostLanes entries, so that a vector of it can be loaded from
// any channel on.
struct BiasActTable {
  void (*f32)(const BiasAct& args, const void* bias, int64_t begin, int64_t end);
  void (*f64)(const BiasAct& args, const void* bias, int64_t begin, int64_t end);  // portable level only
  void (*bf16)(const BiasAct& args, const void* bias, int64_t begin, int64_t end);
};

GAN_FAST_DECLARE_TABLE(BiasActTable, bias_act_table)

}  // namespace gan_fast
