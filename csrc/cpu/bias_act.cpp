// Driver of bias_act and act_grad: pieces for the threads, and the bias in the form the kernel reads.
#include "cpu/bias_act.h"

#include <algorithm>
#include <vector>

#include "common/parallel.h"

namespace gan_fast {
namespace {

// 32 Ki elements: well above what starting a thread costs, and few enough bytes to stay in a core's second-level cache.
constexpr int64_t kPiece = 32768;

// The bias again and again, channels + kMostLanes entries long.
template <class T>
std::vector<T> repeated(const void* bias, int64_t channels) {
  const T* b = static_cast<const T*>(bias);
  std::vector<T> out(static_cast<std::size_t>(channels + kMostLanes));
  for (int64_t i = 0; i < channels + kMostLanes; ++i) out[static_cast<std::size_t>(i)] = b[i % channels];
  return out;
}

template <class Kernel>
void in_pieces(int64_t n, int threads, const Kernel& kernel) {
  parallel_tasks((n + kPiece - 1) / kPiece, threads, [&](int64_t piece) {
    kernel(piece * kPiece, std::min(n, (piece + 1) * kPiece));
  });
}

}  // namespace

void bias_act(const BiasAct& args, int threads) {
  const int64_t n = args.outer * args.channels * args.inner;
  if (n == 0) return;
  const bool wide = args.dtype == 1;
  const auto kernel = wide ? portable::bias_act_table.bias_act_f64 : bias_act_table_for_level().bias_act_f32;
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
  in_pieces(n, threads, [&](int64_t begin, int64_t end) { kernel(args, bias, begin, end); });
}

void act_grad(const ActGrad& args, int threads) {
  const auto kernel = args.dtype == 1 ? portable::bias_act_table.act_grad_f64 : bias_act_table_for_level().act_grad_f32;
  in_pieces(args.n, threads, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

}  // namespace gan_fast
