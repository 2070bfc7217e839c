#include "gather_plan.h"

#include <algorithm>

namespace gan_fast {

void finish_plan(AxisPlan& plan) {
  int64_t largest = 0;
  plan.max_count = 0;
  for (AxisPhase& phase : plan.phases) {
    std::sort(phase.taps.begin(), phase.taps.end(), [](const AxisTap& a, const AxisTap& b) {
      return a.plane != b.plane ? a.plane < b.plane : a.offset < b.offset;
    });
    for (const AxisTap& tap : phase.taps) largest = std::max(largest, tap.offset);
    plan.max_count = std::max(plan.max_count, phase.count);
  }
  plan.span = largest + 1;
}

}  // namespace gan_fast
