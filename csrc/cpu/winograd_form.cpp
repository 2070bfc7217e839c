// Which of Winograd's forms serves a call of the gather engine, if any.
#include <algorithm>
#include <type_traits>

#include "isa.h"
#include "pair_kernels.h"
#include "winograd_conv.h"
#include "winograd_plan.h"

namespace gan_fast {
namespace {

constexpr int64_t kFewestChannels = 32;  // below, the transforms cost more than the products they save
// In products: of F(3x3) over F(2x2); of F(4x4), which transforms more weights and sums in shorter chains, over both.
constexpr double kLeastGainOfThree = 1.1, kLeastGainOfFour = 1.25;

// Products that take as long as to transform and stream one weight, which counts once for each point. Measured on an Emerald Rapids; the
// thresholds that follow with vectors of 32 bytes agree with those found on Zen 3. On Zen 4 and 5 not measured.
double products_per_weight(int vector_bytes) { return vector_bytes == 64 ? 250 : 150; }

// Whether F(4x4) in fp32 is within twice PyTorch's error. Ours hardly depends on the shape: 5 to 6e-7 of a result's size with one plane, 6
// to 7e-7 with four. PyTorch's, of a convolution, is 0.7e-7 times the square root of the taps; but weights in channels_last send it another
// way, whose error grows with the channels: 4.2e-7 with 64, 8.5e-7 with 256 of 3x3 taps. That of a transposed one does so in either format.
bool exact_in_fp32(const ConvGeometry& g, const AxisPlan& axis_y, const AxisPlan& axis_x, const WeightStrides& strides) {
  constexpr int64_t kFewestTaps = 25, kFewestChannels = 48, kFewestChannelsTransposed = 128;
  const int64_t channels = g.in_channels / g.groups;
  if (axis_y.phases.size() * axis_x.phases.size() > 1) return channels >= kFewestChannelsTransposed;
  return g.kernel_h * g.kernel_w >= kFewestTaps || (strides.tap != 1 && channels >= kFewestChannels);
}

}  // namespace

template <class S>
WinogradForm winograd_form(const ConvGeometry& g, const AxisPlan& axis_y, const AxisPlan& axis_x, const WeightStrides& strides) {
  if (std::min(g.in_channels, g.out_channels) / g.groups < kFewestChannels) return {};
  const double direct = direct_products(axis_y) * direct_products(axis_x) * static_cast<double>(g.batch);
  const double per_weight = products_per_weight(gather_kernels_for<S>().vector_bytes);
  // Of a pair of channels, the weights' part included.
  const auto cost = [&](const WinogradChoice& choice) { return direct / choice.saving + per_weight * choice.filter_points; };
  WinogradChoice best = winograd_with(2, axis_y, axis_x);
  const auto take = [&](const WinogradChoice& other, double least_gain) {
    if (other.saving >= least_gain * best.saving && cost(other) < cost(best)) best = other;
  };
  const auto take_four = [&] {
    const WinogradChoice four = winograd_with(4, axis_y, axis_x);
    if (four.saving >= kLeastSavingOfFour) take(four, kLeastGainOfFour);
  };
  if constexpr (!std::is_same_v<S, double>) {  // those prove the texts, with one form
    // The operands of pairs are rounded behind the transform: less exact than the direct way, and hardly faster where F(2x2) is not.
    const bool pairs = std::is_same_v<S, Bf16> && pair_kernels() != nullptr;
    if (three_outputs_pay(gather_kernels_for<S>().vector_bytes) && (!pairs || best.saving >= kLeastWinogradSaving)) {
      take(winograd_with(3, axis_y, axis_x), kLeastGainOfThree);
    }
    if (!pairs && (std::is_same_v<S, Bf16> || exact_in_fp32(g, axis_y, axis_x, strides))) take_four();
  }
  const bool pays = best.saving >= kLeastWinogradSaving && cost(best) < direct + per_weight * static_cast<double>(g.kernel_h * g.kernel_w);
  return pays ? best.form : WinogradForm{};
}

template WinogradForm winograd_form<float>(const ConvGeometry&, const AxisPlan&, const AxisPlan&, const WeightStrides&);
template WinogradForm winograd_form<Bf16>(const ConvGeometry&, const AxisPlan&, const AxisPlan&, const WeightStrides&);
template WinogradForm winograd_form<double>(const ConvGeometry&, const AxisPlan&, const AxisPlan&, const WeightStrides&);

}  // namespace gan_fast
