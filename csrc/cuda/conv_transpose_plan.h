// Who computes what in the transposed convolution from few channels, which is also the input gradient of the one to few.
//
//   y[q, o] = act(b[o] + sum over i, t of X[q, (i, t)] * w[(i, t), o]),   X[q, (i, t)] = x[(q + pad - t * dilation) / stride, i]
//
// where that position exists, else 0: a matrix product whose inner dimension are channels times taps. A block keeps the weights of
// some channels in shared memory and goes over tiles of 128 pixels, for each of which it gathers X. An inner dimension that does
// not fit is cut into parts.
#pragma once

#include "few_channels.h"

namespace gan_fast::cuda {

constexpr int kTilePixels = kWarps * kRows;
constexpr int kMostSteps = 11;   // steps of 8 words of the inner dimension that a part holds
constexpr int kMostBlocks = 528;  // a block packs the weights once, for all its tiles

struct TransposePlan : Shape {
  int inner;               // input channels times taps
  int steps, parts;        // of 8 words: in a part
  int pixels, tiles;       // of the whole output
  int groups, walkers;     // of channels; blocks that share a group's tiles
};

struct TransposeTensors {
  const void *x, *w, *bias, *prologue;  // prologue: the output of the activation whose derivative multiplies x, or null
  void* y;
  int activation, prologue_activation;
  float slope, prologue_slope;
};

// A tap as a column of X, and a pixel as a row.
struct Tap {
  int down, right, input, inside;
};
struct Pixel {
  int image, y, x, inside;  // image: position of its first input pixel; y, x: with the padding
};

inline int transpose_column_tiles(const TransposePlan& p, Product product) {
  return product == kIeee || p.out_channels <= 64 ? 8 : 16;
}

inline size_t transpose_shared(const TransposePlan& p, Product product, int column_tiles) {
  const size_t taps = static_cast<size_t>(p.steps) * kWords * (is_half(product) ? 2 : 1) * sizeof(Tap);
  const size_t gathered = static_cast<size_t>(kWarps) * p.steps * kWarp * sizeof(Chunk);
  const size_t weights = static_cast<size_t>(p.steps) * column_tiles * kWarp * 2 * sizeof(uint32_t);
  return taps + kTilePixels * sizeof(Pixel) + gathered + weights;
}

// Throws std::invalid_argument for what the kernels cannot do.
inline TransposePlan plan_transpose(const ConvGeometry& g, Product product) {
  constexpr int64_t most = int64_t{1} << 30;
  TransposePlan p{};
  static_cast<Shape&>(p) = shape_of(g, g.in_channels, "input channels");
  const int64_t inputs = g.batch * g.in_h * g.in_w * g.in_channels, pixels = g.batch * g.out_h * g.out_w;
  refuse_unless(inputs < most, "elements of the input", inputs, "less than 2^30");
  refuse_unless(pixels < most, "positions of the output", pixels, "less than 2^30");
  refuse_unless(g.out_channels < (1 << 20), "output channels", g.out_channels, "less than 2^20");
  p.inner = p.in_channels * p.kernel_h * p.kernel_w;
  const int steps = ceil_div(p.inner, kWords * (is_half(product) ? 2 : 1));
  p.parts = ceil_div(steps, kMostSteps);
  p.steps = ceil_div(steps, p.parts);
  p.pixels = static_cast<int>(pixels);
  p.tiles = ceil_div(p.pixels, kTilePixels);
  p.groups = ceil_div(p.out_channels, transpose_column_tiles(p, product) * kColumns);
  p.walkers = lesser(p.tiles, greater(kMostBlocks / p.groups, 1));
  return p;
}

}  // namespace gan_fast::cuda
