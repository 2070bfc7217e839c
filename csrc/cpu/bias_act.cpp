// Driver of bias_act: pieces for the threads, and the bias in the form the kernel reads.
#include "cpu/bias_act.h"

#include <vector>

#include "common/parallel.h"

namespace gan_fast {
namespace {

// The bias again and again, channels + kMostLanes entries long.
template <class T>
std::vector<T> repeated(const void* bias, int64_t channels) {
  const T* b = static_cast<const T*>(bias);
  std::vector<T> out(static_cast<std::size_t>(channels + kMostLanes));
  for (int64_t i = 0; i < channels + kMostLanes; ++i) out[static_cast<std::size_t>(i)] = b[i % channels];
  return out;
}

}  // namespace

void bias_act(const BiasAct& args, int threads) {
  const int64_t n = args.outer * args.channels * args.inner;
  if (n == 0) return;
  const bool wide = args.dtype == 1;
  const auto kernel = wide ? portable::bias_act_table.f64 : bias_act_table_for_level().f32;
  const void* bias = args.bias;
  std::vector<float> floats;
  std::vector<double> doubles;
  if (bias != nullptr && args.inner == 1) {
    if (wide) {
      doubles = repeated<double>(bias, args.channels);
      bias = doubles.data();
    } else {
      floats = repeated<float>(bias, args.channels);
      bias = floats.data();
    }
  }
  parallel_elements(n, threads, [&](int64_t begin, int64_t end) { kernel(args, bias, begin, end); });
}

}  // namespace gan_fast
