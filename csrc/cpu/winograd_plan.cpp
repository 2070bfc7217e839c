#include "winograd_plan.h"

#include <algorithm>

#include "common/geometry.h"

namespace gan_fast {
namespace {

constexpr unsigned infinity(int outputs) { return 1u << (line_points(outputs) - 1); }

// Which points of an axis a filter with these taps has: 0 needs the first tap, infinity the last, the others any.
unsigned alive_points(const AxisPhase& phase, int64_t plane, int outputs) {
  const unsigned others = infinity(outputs) - 2;
  unsigned points = 0;
  for (const AxisTap& tap : phase.taps) {
    if (tap.plane != plane) continue;
    points |= others | (tap.offset == 0 ? 1u : 0u) | (tap.offset == most_taps(outputs) - 1 ? infinity(outputs) : 0u);
  }
  return points;
}

// Products along an axis, over all its outputs, phases and planes.
double winograd_products(const AxisPlan& axis, int outputs, bool lacks_first) {
  // As cut_axis cuts it: most short pieces lack a single output.
  const int64_t all = ceil_div(axis.max_count, outputs), lacking = all * outputs - axis.max_count;
  const int64_t full = all - std::min(lacks_first ? all - 1 : all, lacking);
  double products = 0;
  for (const AxisPhase& phase : axis.phases) {
    for (int64_t plane = 0; plane < axis.planes; ++plane) {
      const unsigned points = alive_points(phase, plane, outputs);
      products += static_cast<double>(__builtin_popcount(points)) * static_cast<double>(full);
      products += static_cast<double>(__builtin_popcount(points & ~(lacks_first ? 1u : infinity(outputs)))) * static_cast<double>(all - full);
    }
  }
  return products;
}

// Points that the filters of all phases and planes have along an axis.
double filter_points(const AxisPlan& axis, int outputs) {
  int points = 0;
  for (const AxisPhase& phase : axis.phases) {
    for (int64_t plane = 0; plane < axis.planes; ++plane) points += __builtin_popcount(alive_points(phase, plane, outputs));
  }
  return points;
}

}  // namespace

double direct_products(const AxisPlan& axis) {
  double products = 0;
  for (const AxisPhase& phase : axis.phases) products += static_cast<double>(phase.taps.size()) * static_cast<double>(phase.count);
  return products;
}

std::vector<AxisPiece> cut_axis(int64_t count, int outputs, bool lacks_first) {
  std::vector<AxisPiece> pieces;
  int64_t left = count;
  for (int64_t at = 0, more = ceil_div(count, outputs); more > 0; --more) {
    // The first one is whole if it can be, for it must not begin before 0.
    const int64_t size = at == 0 && lacks_first ? std::min<int64_t>(outputs, left) : ceil_div(left, more);
    const int lacking = outputs - static_cast<int>(size);
    pieces.push_back(lacks_first ? AxisPiece{at - lacking, lacking, outputs} : AxisPiece{at, 0, outputs - lacking});
    at += size;
    left -= size;
  }
  return pieces;
}

WinogradChoice winograd_with(int outputs, const AxisPlan& axis_y, const AxisPlan& axis_x) {
  const auto fits = [&](const AxisPlan& axis) {
    return axis.span >= 2 && axis.span <= most_taps(outputs) && (outputs != 3 || axis.max_count >= outputs);
  };
  WinogradChoice choice{{outputs, false, false}, 0, 0};
  if (!fits(axis_y) || !fits(axis_x) || axis_y.planes * axis_x.planes > kMostPlanes) return choice;
  const auto products = [&](const AxisPlan& axis, bool& lacks_first) {
    const double last = winograd_products(axis, outputs, false);
    if (outputs != 3) return last;
    const double first = winograd_products(axis, outputs, true);
    lacks_first = first < last;
    return std::min(first, last);
  };
  const double y = products(axis_y, choice.form.lacks_first_y), x = products(axis_x, choice.form.lacks_first_x);
  choice.saving = direct_products(axis_y) * direct_products(axis_x) / (y * x);
  choice.filter_points = filter_points(axis_y, outputs) * filter_points(axis_x, outputs);
  return choice;
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
