// Driver of fma_peak: the same rounds on every thread.
#include "cpu/fma_peak.h"

#include <atomic>

#include "common/parallel.h"

namespace gan_fast {

double fma_peak(int64_t rounds, int threads) {
  const auto kernel = fma_peak_table_for_level().f32;
  std::atomic<double> operations{0};
  parallel_tasks(threads, threads, [&](int64_t) {
    float sink = 0;
    const double done = static_cast<double>(kernel(rounds, &sink)) * static_cast<double>(rounds);
    double before = operations.load();
    while (!operations.compare_exchange_weak(before, before + done)) {
    }
  });
  return operations.load();
}

}  // namespace gan_fast
