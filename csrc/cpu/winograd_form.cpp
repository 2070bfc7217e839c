// Which of Winograd's forms serves a call of the gather engine, if any.
#include <algorithm>
#include <type_traits>

#include "pair_kernels.h"
#include "winograd_conv.h"
#include "winograd_plan.h"

namespace gan_fast {
namespace {

constexpr int64_t kFewestChannels = 32;  // below, the transforms cost more than the products they save
// In products: of F(3x3) over F(2x2); of F(4x4), which transforms more weights and sums in shorter chains, over both.
constexpr double kLeastGainOfThree = 1.1, kLeastGainOfFour = 1.25;

// Pieces in the whole call that the weights' transform is shared by. With vectors of 64 bytes measured on Zen 5, whose direct products are
// twice as fast: weights that no cache holds then have to be shared by more. With shorter ones as those of 32 bytes on Zen 3, where F(3x3)
// with its four planes of weights gains nothing below so many.
int64_t fewest_pieces(int outputs, int64_t weights, int vector_bytes) {
  constexpr int64_t kFew = 128, kMany = 384, kMostWeights = 1500 * 1000;
  return (vector_bytes == 64 ? weights > kMostWeights : outputs == 3) ? kMany : kFew;
}

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
  const int64_t in_channels = g.in_channels / g.groups;
  if (std::min(in_channels, g.out_channels / g.groups) < kFewestChannels) return {};
  const int64_t weights = in_channels * g.out_channels * g.kernel_h * g.kernel_w;
  const int vector_bytes = gather_kernels_for<S>().vector_bytes;
  const auto with = [&](int outputs) {
    const int64_t pieces = g.batch * ceil_div(axis_y.max_count, outputs) * ceil_div(axis_x.max_count, outputs);
    return pieces < fewest_pieces(outputs, weights, vector_bytes) ? WinogradChoice{} : winograd_with(outputs, axis_y, axis_x);
  };
  WinogradChoice best = with(2);
  if constexpr (!std::is_same_v<S, double>) {  // those prove the texts, with one form
    // The operands of pairs are rounded behind the transform: less exact than the direct way, and hardly faster where F(2x2) is not.
    const bool pairs = std::is_same_v<S, Bf16> && pair_kernels() != nullptr;
    const WinogradChoice three = pairs && best.saving < kLeastWinogradSaving ? WinogradChoice{} : with(3);
    if (three.saving >= kLeastGainOfThree * best.saving) best = three;
    if (!pairs && (std::is_same_v<S, Bf16> || exact_in_fp32(g, axis_y, axis_x, strides))) {
      if (const WinogradChoice four = with(4); four.saving >= kLeastGainOfFour * best.saving) best = four;
    }
  }
  return best.saving >= kLeastWinogradSaving ? best.form : WinogradForm{};
}

template WinogradForm winograd_form<float>(const ConvGeometry&, const AxisPlan&, const AxisPlan&, const WeightStrides&);
template WinogradForm winograd_form<Bf16>(const ConvGeometry&, const AxisPlan&, const AxisPlan&, const WeightStrides&);
template WinogradForm winograd_form<double>(const ConvGeometry&, const AxisPlan&, const AxisPlan&, const WeightStrides&);

}  // namespace gan_fast
