// Which parts of a gather (gather_plan.h) Winograd's F(m x m, r x r) can compute, and with how many products.
#pragma once

#include <cstdint>
#include <vector>

#include "gather_plan.h"
#include "isa.h"

namespace gan_fast {

constexpr int64_t kMostPlanes = 64;
// Below, the transforms eat what the products save.
constexpr double kLeastWinogradSaving = 1.4;
constexpr double kLeastSavingOfFour = 1.8;  // of F(4x4), whose transforms are larger; kernel 3 with stride 2 would save 1.44

// m, the outputs that a piece has along each axis: 2, or 3 where phases have two taps at most, or 4 where the arithmetic is exact enough
// (winograd_conv.h). It has m + r - 1 inputs along it, and as many points.
constexpr int kMostPoints = 36;
constexpr int most_taps(int outputs) { return outputs == 3 ? 2 : 3; }
constexpr int line_points(int outputs) { return outputs + most_taps(outputs) - 1; }
constexpr int piece_points(int outputs) { return line_points(outputs) * line_points(outputs); }

// Not where multiply-adds are twice as fast: with vectors of 64 bytes on such cores kernel 3 with stride 2 was up to 1.3 times slower than
// directly, kernel 4 no faster than with F(2x2).
inline bool three_outputs_pay(int vector_bytes) { return vector_bytes < 64 || !roomy_near_cache(); }

// A piece that lacks its last output along an axis does not need the product at the point infinity there; one that lacks its first,
// none at 0. All short pieces along an axis lack the same.
struct WinogradForm {
  int outputs;  // m; 0: the engine does not serve the call
  bool lacks_first_y, lacks_first_x;

  int points() const { return piece_points(outputs); }
};

// A piece along an axis: where its m outputs begin, and which of them are its own.
struct AxisPiece {
  int64_t start;
  int first, end;

  bool is_short(int outputs) const { return end - first < outputs; }
};

// Cuts an axis of so many outputs into pieces as long as each other, the longer ones first. Those that lack their first output begin
// before it, but none before 0 if there are m outputs.
std::vector<AxisPiece> cut_axis(int64_t count, int outputs, bool lacks_first);

// Multiply-adds of the direct algorithm for a pair of channels, along an axis.
double direct_products(const AxisPlan& axis);

// The form with so many outputs, and the products of the direct algorithm over its, waste at the output's edges included; 0 if some phase
// reaches further than its taps. And what the weights of a pair of channels become: the points of all phases' and planes' filters.
struct WinogradChoice {
  WinogradForm form;
  double saving, filter_points;
};
WinogradChoice winograd_with(int outputs, const AxisPlan& axis_y, const AxisPlan& axis_x);

// The taps that join one plane of the input to one phase of the output, as a 3x3 filter.
struct WinogradFilter {
  int64_t kernel[9];  // index into the kernel (ky * kernel_w + kx), or -1
  uint64_t points;    // bit y * (m + r - 1) + x: the point's product does not vanish

  bool has(int point) const { return (points >> point & 1) != 0; }
};

WinogradFilter winograd_filter(const AxisPhase& y, int64_t plane_y, const AxisPhase& x, int64_t plane_x, int64_t kernel_w, int outputs);

// Elements between points: those of a piece are written one after another, which should not share cache sets.
constexpr int64_t kPointPad = 16;

// Pieces are ordered so that those with a product at a point follow each other: short columns, inside, short rows, and both.
constexpr int kEdges = 4;
inline int edge_of(bool short_rows, bool short_columns) { return short_rows ? (short_columns ? 3 : 2) : (short_columns ? 0 : 1); }

struct PieceRange {
  int64_t begin, end;
};

// How many of some ordered pieces are of each kind.
struct EdgeCounts {
  int64_t pieces[kEdges];

  // The pieces with a product at this point.
  PieceRange at(int point, const WinogradForm& form) const {
    const int n = line_points(form.outputs);
    const bool row_lacks = point / n == (form.lacks_first_y ? 0 : n - 1), column_lacks = point % n == (form.lacks_first_x ? 0 : n - 1);
    const int64_t all = pieces[0] + pieces[1] + pieces[2] + pieces[3];
    const int64_t begin = column_lacks ? pieces[0] : 0;
    if (row_lacks) return {begin, pieces[0] + pieces[1]};
    return {begin, column_lacks ? all - pieces[3] : all};
  }
};

}  // namespace gan_fast
