#include "gather_blocking.h"

#include <algorithm>

#include "gather_conv.h"

namespace gan_fast {

bool few_outputs(const ConvGeometry& g, int64_t vector) {
  return g.out_channels / g.groups <= vector / 2 && g.in_channels / g.groups >= vector;
}

int64_t best_run_length(int64_t rows, int64_t width, int64_t pixels) {
  constexpr double kFewestPixels = 4, kRunCost = 0.03, kBlockCost = 0.3;  // in pixels
  int64_t best = 1;
  double least = 0;
  for (int64_t length = std::min(width, pixels); length >= 1; --length) {
    const int64_t runs = std::min<int64_t>(kMaxRuns, pixels / length);
    const int64_t blocks = ceil_div(rows * ceil_div(width, length), runs);
    const double block = std::max(kFewestPixels, static_cast<double>(runs * length)) + kRunCost * static_cast<double>(runs) + kBlockCost;
    const double cost = static_cast<double>(blocks) * block;
    if (least == 0 || cost < least) {
      least = cost;
      best = length;
    }
  }
  return best;
}

}  // namespace gan_fast
