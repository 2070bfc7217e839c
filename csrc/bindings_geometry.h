// The 16 numbers of a convolution's geometry and an activation's code as bindings take them; each throws std::invalid_argument.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "common/activation.h"
#include "common/geometry.h"

namespace gan_fast {

inline constexpr std::array<const char*, 16> kFields = {"batch",    "in_channels", "in_h",     "in_w",  "out_channels", "out_h",
                                                 "out_w",    "kernel_h",    "kernel_w", "stride_h", "stride_w", "pad_h",
                                                 "pad_w",    "dilation_h",  "dilation_w", "groups"};

inline constexpr int64_t kMostPositions = int64_t{1} << 40;  // along one axis, and of padding
inline constexpr int64_t kMostSpread = int64_t{1} << 20;     // of stride and dilation
inline constexpr double kMostPacked = 0x1p40, kMostSpanned = 0x1p58;

// Sizes are bounded by the memory of real tensors; padding, stride and dilation by nothing. Within these bounds no product of the
// drivers' leaves 64 bits, and what they pack for the smallest tile (16 outputs of one row) may at worst be more than there is.
inline void check_spread(const ConvGeometry& g) {
  const auto spanned = [&](int64_t rows, int64_t columns) {
    const auto along = [](int64_t n, int64_t kernel, int64_t stride, int64_t dilation) {
      return static_cast<double>(n) * static_cast<double>(stride) + static_cast<double>(kernel) * static_cast<double>(dilation);
    };
    return along(rows, g.kernel_h, g.stride_h, g.dilation_h) * along(columns, g.kernel_w, g.stride_w, g.dilation_w) *
           static_cast<double>(g.in_channels / g.groups + g.out_channels / g.groups + 32);
  };
  const int64_t rows = std::max(g.in_h, g.out_h) + 2, columns = std::max(g.in_w, g.out_w) + 2;
  if (spanned(2, 16) > kMostPacked || spanned(rows, columns) > kMostSpanned) {
    throw std::invalid_argument("stride=(" + std::to_string(g.stride_h) + ", " + std::to_string(g.stride_w) + "), dilation=(" +
                                std::to_string(g.dilation_h) + ", " + std::to_string(g.dilation_w) + "): expected neighbouring "
                                "outputs and taps to lie nearer to each other");
  }
}

inline ConvGeometry parse_geometry(const pybind11::tuple& values) {
  if (values.size() != kFields.size()) {
    throw std::invalid_argument("geometry has " + std::to_string(values.size()) + " numbers: expected 16 (batch ... groups)");
  }
  std::array<int64_t, 16> v{};
  for (std::size_t i = 0; i < v.size(); ++i) {
    v[i] = values[i].cast<int64_t>();
    const bool padding = i == 11 || i == 12;
    const bool positive = i >= 7 && !padding;
    if (!padding && v[i] < (positive ? 1 : 0)) {
      throw std::invalid_argument(std::string(kFields[i]) + "=" + std::to_string(v[i]) + ": expected at least " +
                                  (positive ? "1" : "0"));
    }
    const bool spread = i == 9 || i == 10 || i == 13 || i == 14;  // strides, dilations
    const int64_t most = spread ? kMostSpread : kMostPositions;
    if (v[i] > most || v[i] < -most) {
      throw std::invalid_argument(std::string(kFields[i]) + "=" + std::to_string(v[i]) + ": expected at " +
                                  (v[i] > 0 ? "most " : "least -") + std::to_string(most));
    }
  }
  const ConvGeometry g{v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], v[8], v[9], v[10], v[11], v[12], v[13], v[14], v[15]};
  if (g.in_channels % g.groups != 0 || g.out_channels % g.groups != 0) {
    throw std::invalid_argument("groups=" + std::to_string(g.groups) + ": expected a divisor of in_channels=" +
                                std::to_string(g.in_channels) + " and out_channels=" + std::to_string(g.out_channels));
  }
  check_spread(g);
  return g;
}

inline int parse_activation(const char* name, int code) {
  if (code < kNone || code > kSigmoid) {
    throw std::invalid_argument(std::string(name) + "=" + std::to_string(code) +
                                ": expected 0 none, 1 relu, 2 leaky_relu, 3 tanh or 4 sigmoid");
  }
  return code;
}

}  // namespace gan_fast
