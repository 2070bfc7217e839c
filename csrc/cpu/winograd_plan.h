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

// A piece at the end of an axis of odd length has one output there, which needs no product at the point infinity. Pieces are ordered so
// that those with a product at a point follow each other: last column, inside, last row, and the corner.
constexpr int kEdges = 4;
inline int edge_of(bool last_row, bool last_column) { return last_row ? (last_column ? 3 : 2) : (last_column ? 0 : 1); }

struct PieceRange {
  int64_t begin, end;
};

// How many of some ordered pieces are of each kind.
struct EdgeCounts {
  int64_t pieces[kEdges];

  // The pieces with a product at this point.
  PieceRange at(int point) const {
    const bool row_end = point / 4 == 3, column_end = point % 4 == 3;
    const int64_t all = pieces[0] + pieces[1] + pieces[2] + pieces[3];
    const int64_t begin = column_end ? pieces[0] : 0;
    if (row_end) return {begin, pieces[0] + pieces[1]};
    return {begin, column_end ? all - pieces[3] : all};
  }
};

WinogradFilter winograd_filter(const AxisPhase& y, int64_t plane_y, const AxisPhase& x, int64_t plane_x, int64_t kernel_w);

}  // namespace gan_fast
