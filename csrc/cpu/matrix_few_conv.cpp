// Convolutions to few output channels on matrix registers: 16 lanes of which one or three would be used.
//
// The kernel's columns become lanes too: a convolution along y alone, whose output channels are the (column, channel) pairs, and whose
// columns are those of the padded input. An output is then the sum of one lane from each of as many columns as the kernel has. For 128
// channels to 1 with a 7x7 kernel that is a seventh of the products.
#include <algorithm>
#include <vector>

#include "common/parallel.h"
#include "common/scratch.h"
#include "matrix_conv.h"
#include "matrix_kernels.h"
#include "tile.h"

namespace gan_fast {
namespace {

constexpr int64_t kMostChannels = 8;
constexpr double kLeastSaving = 1.3;  // of products, for the sums afterwards
constexpr int64_t kWideBytes = 4 << 20;
constexpr int64_t kRowsPerTask = 16;

}  // namespace

bool matrix_few_pays(const ConvGeometry& g, const AxisPlan& axis_x) {
  if (g.groups != 1 || g.out_channels > kMostChannels || g.in_channels < kMatrixRows || axis_x.planes != 1) return false;
  const auto blocks = [](int64_t lanes) { return static_cast<double>(ceil_div(lanes, kMatrixLanes / 2)); };
  double plain = 0;
  for (const AxisPhase& phase : axis_x.phases) plain += static_cast<double>(phase.taps.size());
  const double columns = static_cast<double>(axis_x.max_count + axis_x.span - 1) / static_cast<double>(std::max<int64_t>(axis_x.max_count, 1));
  return plain * blocks(g.out_channels) >= kLeastSaving * columns * blocks(g.kernel_w * g.out_channels);
}

template <class S>
bool matrix_few_conv(const ConvGeometry& g, const AxisPlan& axis_y, const AxisPlan& axis_x, const WeightStrides& strides, const S* x,
                     const S* weight, S* y, const Epilogue& epilogue, const Prologue& prologue, int threads) {
  const int64_t outs = g.out_channels, lanes = g.kernel_w * outs, columns = axis_x.max_count + axis_x.span - 1;
  ConvGeometry along_y = g;
  along_y.out_channels = lanes;
  along_y.out_w = columns;
  along_y.kernel_w = along_y.stride_w = along_y.dilation_w = 1;
  const AxisPlan every_column{g.in_w, 1, axis_x.lead, 1, columns, {{0, 1, columns, {{0, 0, 0}}}}};
  const WeightStrides lane_strides{0, g.in_channels * g.kernel_h, g.kernel_h, 1};
  std::vector<S> lane_weights(lanes * g.in_channels * g.kernel_h);
  for (int64_t lane = 0; lane < lanes; ++lane) {
    for (int64_t c = 0; c < g.in_channels; ++c) {
      for (int64_t ky = 0; ky < g.kernel_h; ++ky) {
        lane_weights[lane * lane_strides.out + c * lane_strides.in + ky] =
            weight[lane % outs * strides.out + c * strides.in + (ky * g.kernel_w + lane / outs) * strides.tap];
      }
    }
  }
  // Some images at a time, or some rows of a large one: what their columns give is to be added up while it is in the cache.
  const int64_t step = axis_y.phases[0].out_step, image = g.out_h * columns * lanes;
  const int64_t fitting = kWideBytes / static_cast<int64_t>(sizeof(float)) / std::max<int64_t>(1, step * columns * lanes);
  const int64_t band = std::clamp<int64_t>(fitting, 1, axis_y.max_count);  // rows of a phase
  const int64_t together = std::clamp<int64_t>(kWideBytes / std::max<int64_t>(1, image * static_cast<int64_t>(sizeof(float))), 1, g.batch);
  const CallScratch call_memory(kWholeCall, together * std::min(g.out_h, band * step) * columns * lanes * sizeof(float));
  float* const wide = call_memory.as<float>();
  float biases[16] = {};
  if (epilogue.bias != nullptr) pad_bias(static_cast<const S*>(epilogue.bias), 1, outs, 16, biases);
  std::vector<std::vector<int64_t>> taps_of(axis_x.phases.size());
  for (std::size_t phase = 0; phase < axis_x.phases.size(); ++phase) {
    for (const AxisTap& tap : axis_x.phases[phase].taps) taps_of[phase].push_back(tap.offset * lanes + tap.kernel * outs);
  }
  const int64_t in_image = g.in_h * g.in_w * g.in_channels, out_row = g.out_w * outs;
  for (int64_t first = 0; first < g.batch; first += together) {
    along_y.batch = std::min(together, g.batch - first);
    Prologue part = prologue;
    if (part.y != nullptr) part.y = static_cast<const S*>(prologue.y) + first * in_image;
    for (int64_t t = 0; t < axis_y.max_count; t += band) {
      AxisPlan rows_of_band = axis_y;
      rows_of_band.lead -= t * axis_y.planes;
      rows_of_band.max_count = std::min(band, axis_y.max_count - t);
      for (AxisPhase& phase : rows_of_band.phases) phase.count = std::clamp<int64_t>(phase.count - t, 0, rows_of_band.max_count);
      along_y.out_h = std::min(g.out_h - t * step, rows_of_band.max_count * step);
      if (!matrix_conv<S>(along_y, rows_of_band, every_column, lane_strides, x + first * in_image, lane_weights.data(), nullptr, wide,
                          Epilogue{nullptr, 0, 0}, part, threads)) {
        return false;
      }
      const int64_t rows = along_y.batch * along_y.out_h;
      S* const out = y + (first * g.out_h + t * step) * out_row;
      parallel_tasks(ceil_div(rows, kRowsPerTask), threads, [&](int64_t task) {
        float* const line = static_cast<float*>(scratch(kTileC, out_row * sizeof(float)));
        for (int64_t row = task * kRowsPerTask; row < std::min(rows, (task + 1) * kRowsPerTask); ++row) {
          const float* const from = wide + row * columns * lanes;
          for (std::size_t phase = 0; phase < axis_x.phases.size(); ++phase) {
            const AxisPhase& along_x = axis_x.phases[phase];
            const auto& taps = taps_of[phase];
            matrix_kernels()->add_lanes({from, lanes, taps.data(), static_cast<int64_t>(taps.size()), along_x.count, outs, biases,
                                         line + along_x.out_start * outs, along_x.out_step});
          }
          functions_of<S>(*matrix_kernels()).activate(line, out_row, epilogue.activation, static_cast<float>(epilogue.slope), out + row * out_row);
        }
      });
    }
  }
  return true;
}

template bool matrix_few_conv<Bf16>(const ConvGeometry&, const AxisPlan&, const AxisPlan&, const WeightStrides&, const Bf16*, const Bf16*,
                                    Bf16*, const Epilogue&, const Prologue&, int);
template bool matrix_few_conv<float>(const ConvGeometry&, const AxisPlan&, const AxisPlan&, const WeightStrides&, const float*, const float*,
                                     float*, const Epilogue&, const Prologue&, int);

}  // namespace gan_fast
