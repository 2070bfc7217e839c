#include "winograd_plan.h"

#include <algorithm>

namespace gan_fast {
namespace {

constexpr unsigned infinity(int outputs) { return 1u << (outputs + 1); }

// Which points of an axis a filter with these taps (offsets 0..2) has: 0 needs the first tap, infinity the last, the others any.
unsigned alive_points(const AxisPhase& phase, int64_t plane, int outputs) {
  const unsigned others = infinity(outputs) - 2;
  unsigned points = 0;
  for (const AxisTap& tap : phase.taps) {
    if (tap.plane != plane) continue;
    points |= others | (tap.offset == 0 ? 1u : 0u) | (tap.offset == 2 ? infinity(outputs) : 0u);
  }
  return points;
}

// Products along an axis, over all its outputs, phases and planes: direct and with F(m, 3).
void count_products(const AxisPlan& axis, int outputs, double& direct, double& winograd) {
  direct = winograd = 0;
  for (const AxisPhase& phase : axis.phases) {
    direct += static_cast<double>(phase.taps.size()) * static_cast<double>(phase.count);
    for (int64_t plane = 0; plane < axis.planes; ++plane) {
      const unsigned points = alive_points(phase, plane, outputs);
      winograd += __builtin_popcount(points) * static_cast<double>(axis.max_count / outputs);
      if (axis.max_count % outputs != 0) winograd += __builtin_popcount(points & ~infinity(outputs));
    }
  }
}

}  // namespace

double winograd_saving(const AxisPlan& axis_y, const AxisPlan& axis_x, int outputs) {
  const auto fits = [](const AxisPlan& axis) { return axis.span == 2 || axis.span == 3; };
  if (!fits(axis_y) || !fits(axis_x) || axis_y.planes * axis_x.planes > kMostPlanes) return 0;
  double direct_y, direct_x, winograd_y, winograd_x;
  count_products(axis_y, outputs, direct_y, winograd_y);
  count_products(axis_x, outputs, direct_x, winograd_x);
  return direct_y * direct_x / (winograd_y * winograd_x);
}

WinogradFilter winograd_filter(const AxisPhase& y, int64_t plane_y, const AxisPhase& x, int64_t plane_x, int64_t kernel_w, int outputs) {
  WinogradFilter filter{};
  std::fill_n(filter.kernel, 9, int64_t{-1});
  for (const AxisTap& ty : y.taps) {
    for (const AxisTap& tx : x.taps) {
      if (ty.plane == plane_y && tx.plane == plane_x) filter.kernel[ty.offset * 3 + tx.offset] = ty.kernel * kernel_w + tx.kernel;
    }
  }
  const unsigned py = alive_points(y, plane_y, outputs), px = alive_points(x, plane_x, outputs);
  const int n = line_points(outputs);
  for (int a = 0; a < n; ++a) {
    for (int b = 0; b < n; ++b) {
      if ((py >> a & 1) != 0 && (px >> b & 1) != 0) filter.points |= uint64_t{1} << (a * n + b);
    }
  }
  return filter;
}

}  // namespace gan_fast
