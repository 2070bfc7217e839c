// A fixed amount of arithmetic without memory: its time tells how fast the machine is right now, and what the most is.
#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace gan_fast {

// Runs `rounds` rounds of float multiply-adds of the level in use on each of `threads` threads at once; returns the floating-point
// operations done (a multiply-add counts as 2). Where a level has no fused multiply-add, its multiplications and additions.
double fma_peak(int64_t rounds, int threads);

struct FmaPeakTable {
  // One thread's part. Adds what it computed to `sink` and returns the operations of one round.
  int64_t (*f32)(int64_t rounds, float* sink);
  int64_t (*f64)(int64_t rounds, double* sink);  // portable level only
};

GAN_FAST_DECLARE_TABLE(FmaPeakTable, fma_peak_table)

}  // namespace gan_fast
