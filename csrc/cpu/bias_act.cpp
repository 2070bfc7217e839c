// Driver of bias_act: pieces for the threads, and the bias in the form the kernel reads.
#include "cpu/bias_act.h"

#include <vector>

#include "common/parallel.h"
#include "cpu/bf16.h"

namespace gan_fast {
namespace {

// The bias in the type of the arithmetic, again and again until it has `size` entries.
template <class S>
std::vector<Wide<S>> repeated(const void* bias, int64_t channels, int64_t size) {
  const S* b = static_cast<const S*>(bias);
  std::vector<Wide<S>> out(static_cast<std::size_t>(size));
  for (int64_t i = 0; i < size; ++i) out[static_cast<std::size_t>(i)] = widened(b[i % channels]);
  return out;
}

}  // namespace

void bias_act(const BiasAct& args, int threads) {
  const int64_t n = args.outer * args.channels * args.inner;
  if (n == 0) return;
  const auto kernel = function_for(args.dtype, bias_act_table_for_level(), portable::bias_act_table);
  const void* bias = args.bias;
  std::vector<float> floats;
  std::vector<double> doubles;
  if (bias != nullptr && (args.inner == 1 || args.dtype == 2)) {
    const int64_t size = args.inner == 1 ? args.channels + kMostLanes : args.channels;
    if (args.dtype == 1) {
      doubles = repeated<double>(bias, args.channels, size);
      bias = doubles.data();
    } else {
      floats = args.dtype == 2 ? repeated<bf16>(bias, args.channels, size) : repeated<float>(bias, args.channels, size);
      bias = floats.data();
    }
  }
  parallel_elements(n, threads, [&](int64_t begin, int64_t end) { kernel(args, bias, begin, end); });
}

}  // namespace gan_fast
