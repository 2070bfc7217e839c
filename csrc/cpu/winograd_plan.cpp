#include "winograd_plan.h"

#include <algorithm>

namespace gan_fast {
namespace {

// Which of the four points of an axis a filter with these taps (offsets 0..2) has: 0 needs the first tap, infinity the last.
unsigned alive_points(const AxisPhase& phase, int64_t plane) {
  unsigned points = 0;
  for (const AxisTap& tap : phase.taps) {
    if (tap.plane != plane) continue;
    points |= 0b0110u | (tap.offset == 0 ? 1u : 0u) | (tap.offset == 2 ? 8u : 0u);
  }
  return points;
}

// Products per two outputs along an axis, over all phases and planes: direct and with F(2, 3).
void count_products(const AxisPlan& axis, double& direct, double& winograd) {
  direct = winograd = 0;
  for (const AxisPhase& phase : axis.phases) {
    direct += static_cast<double>(phase.taps.size()) * static_cast<double>(phase.count);
    for (int64_t plane = 0; plane < axis.planes; ++plane) {
      const unsigned points = alive_points(phase, plane);
      winograd += __builtin_popcount(points) * static_cast<double>(axis.max_count / 2);
      if (axis.max_count % 2 != 0) winograd += __builtin_popcount(points & 0b0111u);
    }
  }
}

}  // namespace

double winograd_saving(const AxisPlan& axis_y, const AxisPlan& axis_x) {
  const auto fits = [](const AxisPlan& axis) { return axis.span == 2 || axis.span == 3; };
  if (!fits(axis_y) || !fits(axis_x) || axis_y.planes * axis_x.planes > kMostPlanes) return 0;
  double direct_y, direct_x, winograd_y, winograd_x;
  count_products(axis_y, direct_y, winograd_y);
  count_products(axis_x, direct_x, winograd_x);
  return direct_y * direct_x / (winograd_y * winograd_x);
}

WinogradFilter winograd_filter(const AxisPhase& y, int64_t plane_y, const AxisPhase& x, int64_t plane_x, int64_t kernel_w) {
  WinogradFilter filter{};
  std::fill_n(filter.kernel, 9, int64_t{-1});
  for (const AxisTap& ty : y.taps) {
    for (const AxisTap& tx : x.taps) {
      if (ty.plane == plane_y && tx.plane == plane_x) filter.kernel[ty.offset * 3 + tx.offset] = ty.kernel * kernel_w + tx.kernel;
    }
  }
  const unsigned py = alive_points(y, plane_y), px = alive_points(x, plane_x);
  for (int a = 0; a < 4; ++a) {
    for (int b = 0; b < 4; ++b) {
      if ((py >> a & 1) != 0 && (px >> b & 1) != 0) filter.points |= static_cast<uint16_t>(1u << (a * 4 + b));
    }
  }
  return filter;
}

}  // namespace gan_fast
