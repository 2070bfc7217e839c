// What batch_norm_act and its backward share: how (rows, channels) is cut into pieces, and a channel's affine form.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "cpu/batch_norm_act.h"
#include "cpu/bf16.h"

namespace gan_fast {

constexpr int64_t kNormElements = 65536;  // of one piece, about: what a thread takes on at a time

// The cut depends on the shape alone, so sums over the pieces have the same bits for any number of threads.
struct NormPieces {
  int64_t rows, channels;
  int64_t height, width;  // of a piece; those at the end may be smaller
  int64_t down, across;   // number of pieces

  NormPieces(int64_t all_rows, int64_t all_channels) : rows(all_rows), channels(all_channels) {
    const int64_t columns = (channels + kNormChannels - 1) / kNormChannels;
    const int64_t even = (channels + columns - 1) / columns;
    width = std::min(channels, (even + kMostLanes - 1) / kMostLanes * kMostLanes);
    across = (channels + width - 1) / width;
    height = std::min(rows, std::max<int64_t>(1, kNormElements / width));
    down = (rows + height - 1) / height;
  }

  int64_t count() const { return down * across; }
  int64_t row(int64_t piece) const { return piece / across * height; }
  int64_t channel(int64_t piece) const { return piece % across * width; }
  int64_t rows_of(int64_t piece) const { return std::min(height, rows - row(piece)); }
  int64_t channels_of(int64_t piece) const { return std::min(width, channels - channel(piece)); }
};

// weight or bias: one value for each channel, in one of the three dtypes; null for a constant.
struct NormParameters {
  const void* values;
  int dtype;

  double at(int64_t channel, double constant) const {
    if (values == nullptr) return constant;
    switch (dtype) {
      case 1: return static_cast<const double*>(values)[channel];
      case 2: return static_cast<double>(widened(static_cast<const bf16*>(values)[channel]));
      default: return static_cast<double>(static_cast<const float*>(values)[channel]);
    }
  }
};

inline void store_parameter(void* values, int dtype, int64_t channel, double value) {
  switch (dtype) {
    case 1: static_cast<double*>(values)[channel] = value; return;
    case 2: static_cast<bf16*>(values)[channel] = narrowed<bf16>(static_cast<float>(value)); return;
    default: static_cast<float*>(values)[channel] = static_cast<float>(value);
  }
}

// The normalisation of each channel as (x - shift) * scale + offset. shift is the mean rounded to T and offset makes up for
// the rounding, so nothing is lost where the mean is far larger than the deviation. Room for a vector from any channel on.
template <class T>
struct NormAffine {
  std::vector<T> shift, scale, offset;

  NormAffine(int64_t channels, const double* mean, const double* var, double eps, NormParameters weight,
             NormParameters bias)
      : shift(size(channels)), scale(size(channels)), offset(size(channels)) {
    for (int64_t c = 0; c < channels; ++c) {
      const double factor = weight.at(c, 1.0) / std::sqrt(var[c] + eps);
      const std::size_t i = static_cast<std::size_t>(c);
      shift[i] = static_cast<T>(mean[c]);
      scale[i] = static_cast<T>(factor);
      offset[i] = static_cast<T>(bias.at(c, 0.0) + (shift[i] - mean[c]) * factor);
    }
  }

  static std::size_t size(int64_t channels) { return static_cast<std::size_t>(channels + kMostLanes); }
};

}  // namespace gan_fast
