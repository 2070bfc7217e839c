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

std::vector<Tap> phase_taps(const AxisPhase& y, const AxisPhase& x, int64_t planes_x, int64_t kernel_w) {
  std::vector<Tap> taps;
  for (const AxisTap& ty : y.taps) {
    for (const AxisTap& tx : x.taps) {
      taps.push_back({ty.kernel * kernel_w + tx.kernel, ty.plane * planes_x + tx.plane, ty.offset, tx.offset});
    }
  }
  return taps;
}

void order_by_place(std::vector<Tap>& taps, const AxisPlan& axis_y, const AxisPlan& axis_x) {
  std::sort(taps.begin(), taps.end(), [&](const Tap& a, const Tap& b) {
    const int64_t row_a = row_of(a, axis_y, axis_x), row_b = row_of(b, axis_y, axis_x);
    return row_a != row_b ? row_a < row_b : column_of(a, axis_x) < column_of(b, axis_x);
  });
}

}  // namespace gan_fast
