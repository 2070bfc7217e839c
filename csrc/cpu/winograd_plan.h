// Which parts of a gather (gather_plan.h) Winograd's F(m x m, 3x3) can compute, and with how many products.
#pragma once

#include <cstdint>

#include "gather_plan.h"

namespace gan_fast {

constexpr int64_t kMostPlanes = 64;
// Below, the transforms eat what the products save.
constexpr double kLeastWinogradSaving = 1.4;

// m, the outputs that a piece has along each axis: 2, or 4 where the arithmetic is exact enough (winograd_conv.h). It has m + 2 inputs along
// it, and as many points.
constexpr int kMostPoints = 36;
constexpr int line_points(int outputs) { return outputs + 2; }
constexpr int piece_points(int outputs) { return line_points(outputs) * line_points(outputs); }

// Products of the direct algorithm over those of F(m x m, 3x3), waste at the output's edges included; 0 if some phase reaches further
// than three neighbours.
double winograd_saving(const AxisPlan& axis_y, const AxisPlan& axis_x, int outputs);

// The taps that join one plane of the input to one phase of the output, as a 3x3 filter.
struct WinogradFilter {
  int64_t kernel[9];  // index into the kernel (ky * kernel_w + kx), or -1
  uint64_t points;    // bit y * (m + 2) + x: the point's product does not vanish

  bool has(int point) const { return (points >> point & 1) != 0; }
};

WinogradFilter winograd_filter(const AxisPhase& y, int64_t plane_y, const AxisPhase& x, int64_t plane_x, int64_t kernel_w, int outputs);

// A piece that reaches over an axis's end lacks its last output there, which alone needs the product at the point infinity. Pieces are
// ordered so that those with a product at a point follow each other: last column, inside, last row, and the corner.
constexpr int kEdges = 4;
inline int edge_of(bool over_rows, bool over_columns) { return over_rows ? (over_columns ? 3 : 2) : (over_columns ? 0 : 1); }

struct PieceRange {
  int64_t begin, end;
};

// How many of some ordered pieces are of each kind.
struct EdgeCounts {
  int64_t pieces[kEdges];

  // The pieces with a product at this point.
  PieceRange at(int point, int outputs) const {
    const int n = line_points(outputs);
    const bool row_end = point / n == n - 1, column_end = point % n == n - 1;
    const int64_t all = pieces[0] + pieces[1] + pieces[2] + pieces[3];
    const int64_t begin = column_end ? pieces[0] : 0;
    if (row_end) return {begin, pieces[0] + pieces[1]};
    return {begin, column_end ? all - pieces[3] : all};
  }
};

}  // namespace gan_fast
