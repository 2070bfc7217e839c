#include "conv.h"

#include "gather_conv.h"

namespace gan_fast {

AxisPlan plan_conv_axis(int64_t in_size, int64_t out_size, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation) {
  AxisPlan plan{in_size, stride, pad, 0, 0, {}};
  AxisPhase phase{0, 1, out_size, {}};
  for (int64_t k = 0; k < kernel; ++k) phase.taps.push_back({k, (k * dilation) % stride, (k * dilation) / stride});
  plan.phases.push_back(std::move(phase));
  finish_plan(plan);
  return plan;
}

template <class T>
void conv(const ConvGeometry& g, const T* x, const T* weight, bool weight_last, T* y, const Epilogue& epilogue,
          const Prologue& prologue, int threads) {
  const AxisPlan axis_y = plan_conv_axis(g.in_h, g.out_h, g.kernel_h, g.stride_h, g.pad_h, g.dilation_h);
  const AxisPlan axis_x = plan_conv_axis(g.in_w, g.out_w, g.kernel_w, g.stride_w, g.pad_w, g.dilation_w);
  const int64_t taps = g.kernel_h * g.kernel_w;
  const int64_t in = g.in_channels / g.groups, out = g.out_channels / g.groups;
  const WeightStrides strides{out * in * taps, in * taps, weight_last ? 1 : taps, weight_last ? in : 1};
  gather_conv(g, axis_y, axis_x, strides, x, weight, y, epilogue, prologue, threads);
}

template void conv<float>(const ConvGeometry&, const float*, const float*, bool, float*, const Epilogue&, const Prologue&, int);
template void conv<Bf16>(const ConvGeometry&, const Bf16*, const Bf16*, bool, Bf16*, const Epilogue&, const Prologue&, int);
template void conv<double>(const ConvGeometry&, const double*, const double*, bool, double*, const Epilogue&, const Prologue&, int);

}  // namespace gan_fast
