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

// What decides beside the products.
struct Costs {
  // What it takes to transform and stream a weight, which counts once for each point: as long as so many products of a piece. More where
  // all of them outgrow a core's share of the last cache.
  double near_weight, far_weight;
  // Of F(3x3): the direct way has to take so many times as long. The transforms of the pieces are not in the model, and are more beside
  // fewer or faster products.
  double three_over_direct;
};

// With vectors of 32 bytes, and shorter ones, as measured on Zen 3; with those of 64 as on Zen 4, before weights were stored around the
// cache and fetched in time. Where products take half as long a weight costs twice as many, by the model alone.
Costs costs(int vector_bytes) {
  if (vector_bytes < 64) return {30, 60, 1.1};
  const double times = whole_vectors() ? 2 : 1;
  return {45 * times, 90 * times, 1.25};
}

constexpr double kPairsOverDirect = 1.25;  // the same of all forms with pairs

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
  // The operands of pairs are rounded behind the transform: less exact than the direct way, and hardly faster where F(2x2) is not.
  const bool pairs = std::is_same_v<S, Bf16> && pair_kernels() != nullptr;
  const double bytes = static_cast<double>(g.in_channels / g.groups) * static_cast<double>(g.out_channels) * (pairs ? 2 : 4);
  const Costs its = costs(gather_kernels_for<S>().vector_bytes);
  constexpr double kNearBytes = 16e6;
  const auto weights = [&](double points) { return points * (points * bytes > kNearBytes ? its.far_weight : its.near_weight); };
  const double direct_cost = direct + weights(static_cast<double>(g.kernel_h * g.kernel_w));
  // Of a pair of channels, the weights' part included.
  const auto cost = [&](const WinogradChoice& choice) { return direct / choice.saving + weights(choice.filter_points); };
  WinogradChoice best{};
  const auto take = [&](const WinogradChoice& choice, double least_saving, double least_gain) {
    if (choice.saving < least_saving) return;
    const double over_direct = pairs ? kPairsOverDirect : choice.form.outputs == 3 ? its.three_over_direct : 1;
    const bool first = best.form.outputs == 0;
    if (cost(choice) * over_direct < direct_cost && (first || (choice.saving >= least_gain * best.saving && cost(choice) < cost(best)))) {
      best = choice;
    }
  };
  take(winograd_with(2, axis_y, axis_x), kLeastWinogradSaving, 1);
  if constexpr (!std::is_same_v<S, double>) {  // those prove the texts, with one form
    if (three_outputs_pay(gather_kernels_for<S>().vector_bytes) && (!pairs || best.form.outputs != 0)) {
      take(winograd_with(3, axis_y, axis_x), kLeastWinogradSaving, kLeastGainOfThree);
    }
    if (!pairs && (std::is_same_v<S, Bf16> || exact_in_fp32(g, axis_y, axis_x, strides))) {
      take(winograd_with(4, axis_y, axis_x), kLeastSavingOfFour, kLeastGainOfFour);
    }
  }
  return best.form;
}

template WinogradForm winograd_form<float>(const ConvGeometry&, const AxisPlan&, const AxisPlan&, const WeightStrides&);
template WinogradForm winograd_form<Bf16>(const ConvGeometry&, const AxisPlan&, const AxisPlan&, const WeightStrides&);
template WinogradForm winograd_form<double>(const ConvGeometry&, const AxisPlan&, const AxisPlan&, const WeightStrides&);

}  // namespace gan_fast
