#include "conv_transpose.h"

#include <algorithm>

#include "gather_conv.h"

namespace gan_fast {
namespace {

int64_t floor_div(int64_t a, int64_t b) { return a / b - ((a % b != 0 && (a < 0) != (b < 0)) ? 1 : 0); }

}  // namespace

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
  finish_plan(plan);
  return plan;
}

template <class T>
void conv_transpose(const ConvGeometry& g, const T* x, const T* weight, bool weight_last, T* y, const Epilogue& epilogue,
                    const Prologue& prologue, int threads) {
  const AxisPlan axis_y = plan_conv_transpose_axis(g.in_h, g.out_h, g.kernel_h, g.stride_h, g.pad_h, g.dilation_h);
  const AxisPlan axis_x = plan_conv_transpose_axis(g.in_w, g.out_w, g.kernel_w, g.stride_w, g.pad_w, g.dilation_w);
  const int64_t taps = g.kernel_h * g.kernel_w;
  const int64_t in = g.in_channels / g.groups, out = g.out_channels / g.groups;
  const WeightStrides strides{in * out * taps, weight_last ? 1 : taps, out * taps, weight_last ? out : 1};
  gather_conv(g, axis_y, axis_x, strides, x, weight, y, epilogue, prologue, threads);
}

template void conv_transpose<float>(const ConvGeometry&, const float*, const float*, bool, float*, const Epilogue&, const Prologue&, int);
template void conv_transpose<Bf16>(const ConvGeometry&, const Bf16*, const Bf16*, bool, Bf16*, const Epilogue&, const Prologue&, int);
template void conv_transpose<double>(const ConvGeometry&, const double*, const double*, bool, double*, const Epilogue&, const Prologue&, int);

}  // namespace gan_fast
