// Which parts of a gather (gather_plan.h) F(2x2, 3x3) can compute, and with how many products.
#pragma once

#include <cstdint>

#include "gather_plan.h"

namespace gan_fast {

constexpr int64_t kMostPlanes = 64;
// Below, the transforms eat what the products save.
constexpr double kLeastWinogradSaving = 1.4;

// Products of the direct algorithm over those of F(2x2, 3x3), waste at the output's edges included; 0 if some phase reaches further
// than three neighbours.
double winograd_saving(const AxisPlan& axis_y, const AxisPlan& axis_x);

// The taps that join one plane of the input to one phase of the output, as a 3x3 filter.
struct WinogradFilter {
  int64_t kernel[9];  // index into the kernel (ky * kernel_w + kx), or -1
  uint16_t points;    // bit y * 4 + x: the point's product does not vanish
};

WinogradFilter winograd_filter(const AxisPhase& y, int64_t plane_y, const AxisPhase& x, int64_t plane_x, int64_t kernel_w);

}  // namespace gan_fast
