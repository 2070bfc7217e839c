#include "gather_plan.h"

#include <algorithm>

namespace gan_fast {
namespace {

int64_t floor_div(int64_t a, int64_t b) { return a / b - ((a % b != 0 && (a < 0) != (b < 0)) ? 1 : 0); }

void finish(AxisPlan& plan) {
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

}  // namespace

AxisPlan plan_conv_axis(int64_t in_size, int64_t out_size, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation) {
  AxisPlan plan{in_size, stride, pad, 0, 0, {}};
  AxisPhase phase{0, 1, out_size, {}};
  for (int64_t k = 0; k < kernel; ++k) phase.taps.push_back({k, (k * dilation) % stride, (k * dilation) / stride});
  plan.phases.push_back(std::move(phase));
  finish(plan);
  return plan;
}

AxisPlan plan_conv_transpose_axis(int64_t in_size, int64_t out_size, int64_t kernel, int64_t stride, int64_t pad,
                                  int64_t dilation) {
  AxisPlan plan{in_size, 1, 0, 0, 0, {}};
  int64_t smallest = INT64_MAX;
  for (int64_t start = 0; start < std::min(stride, out_size); ++start) {
    // Output o receives input i through kernel index k where o + pad = i * stride + k * dilation.
    const int64_t quotient = floor_div(start + pad, stride);
    const int64_t residue = start + pad - quotient * stride;
    AxisPhase phase{start, stride, (out_size - start + stride - 1) / stride, {}};
    for (int64_t k = 0; k < kernel; ++k) {
      if ((k * dilation) % stride != residue) continue;
      phase.taps.push_back({k, 0, quotient - (k * dilation - residue) / stride});
      smallest = std::min(smallest, phase.taps.back().offset);
    }
    plan.phases.push_back(std::move(phase));
  }
  if (smallest == INT64_MAX) smallest = 0;  // no output pixel has a tap
  for (AxisPhase& phase : plan.phases) {
    for (AxisTap& tap : phase.taps) tap.offset -= smallest;
  }
  plan.lead = -smallest;
  finish(plan);
  return plan;
}

}  // namespace gan_fast
