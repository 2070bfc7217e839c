// Kernel text of fma_peak, compiled once per level.
#include "cpu/fma_peak.h"
#include "cpu/vec.h"

namespace gan_fast {
namespace GF_LEVEL {

extern const FmaPeakTable fma_peak_table;

namespace {

// Two units with a latency of 4 or 5 cycles need 8 to 10 independent chains; 12 leave registers for the two factors at any level.
constexpr int kChains = 12;
constexpr int kUnrolled = 8;  // both also stand in the pragmas below, so that all chains live in registers

template <class T>
int64_t fma_rounds(int64_t rounds, T* sink) {
  Vec<T> sums[kChains];
  for (int i = 0; i < kChains; ++i) sums[i] = splat(static_cast<T>(i + 1));
  // The chains converge to added / (1 - factor): they neither overflow nor become denormal.
  const Vec<T> factor = splat(static_cast<T>(0.75)), added = splat(static_cast<T>(0.5));
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 8
    for (int u = 0; u < kUnrolled; ++u) {
#pragma GCC unroll 12
      for (int i = 0; i < kChains; ++i) sums[i] = sums[i] * factor + added;
    }
  }
  T total = 0;
  for (int i = 0; i < kChains; ++i) {
    for (int lane = 0; lane < VecOf<T>::lanes; ++lane) total += sums[i][lane];
  }
  *sink += total;
  return int64_t{2} * kChains * kUnrolled * VecOf<T>::lanes;
}

}  // namespace

#if GF_VECTOR_BYTES == 16
const FmaPeakTable fma_peak_table = {fma_rounds<float>, fma_rounds<double>};
#else
const FmaPeakTable fma_peak_table = {fma_rounds<float>, nullptr};
#endif

}  // namespace GF_LEVEL
}  // namespace gan_fast
