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

bool rows_make_pairs(const AxisPlan& axis_x, int64_t channels) {
  std::vector<int64_t> columns;
  for (const AxisTap& tap : axis_x.phases.front().taps) columns.push_back(tap.offset * axis_x.planes + tap.plane);
  std::sort(columns.begin(), columns.end());
  const auto apart = [](int64_t a, int64_t b) { return b - a != 1; };
  return channels > 1 || (columns.size() > 1 && std::adjacent_find(columns.begin(), columns.end(), apart) == columns.end());
}

std::vector<RowWord> row_words(const std::vector<Tap>& taps, const AxisPlan& axis_y, const AxisPlan& axis_x, int64_t channels,
                               int64_t kernel_taps, int64_t per_word) {
  constexpr int64_t kNone = -1;
  std::vector<RowWord> words;
  for (const Tap& tap : taps) {
    const int64_t row = row_of(tap, axis_y, axis_x);
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t column = column_of(tap, axis_x) * channels + c, weight = c * kernel_taps + tap.kernel;
      RowWord* const last = words.empty() ? nullptr : &words.back();
      if (per_word == 2 && last != nullptr && last->second == kNone && last->row == row && last->column + 1 == column) {
        last->second = weight;
      } else {
        words.push_back({row, column, weight, kNone, false, false});
      }
    }
  }
  for (std::size_t i = 1; per_word == 2 && i < words.size(); ++i) {
    // What is left over is read with the neighbour before it, which the word before ends with.
    RowWord &word = words[i], &before = words[i - 1];
    if (word.second != kNone) continue;
    word = {word.row, word.column - 1, before.second, word.first, true, false};
    before.half_second = true;
  }
  return words;
}

}  // namespace gan_fast
