// Who computes what in the convolution to few channels: plain numbers, the same on the device, in the driver and in the tests.
//
//   Z[q, (o, t)] = sum over c of x[q, c] * w[o, t, c]        a matrix product: pixels by channels times channels by taps
//   y[p, o] = act(b[o] + sum over t of Z[p * stride - pad + t * dilation, (o, t)])
//
// With one output channel the 49 taps of a 7x7 kernel are the product's columns, which the channel alone would leave empty.
// A block owns a rectangle of one image's outputs. It multiplies the pixels that they read a few rows at a time (a *slice*),
// keeps those products in shared memory, and adds each output's share to its sum. Where there are more columns or channels than
// fit, it goes over the pixels once for each *pass*: a part of the columns and of the channels.
#pragma once

#include "few_channels.h"

namespace gan_fast::cuda {

constexpr int kPassBlocks = 8;          // blocks of 16 words of channels that a pass holds at most
constexpr int kMostPixels = 256;        // of a slice: two tiles of 16 for each warp
constexpr int kMostSums = 2048;         // outputs of a block
constexpr int kBusy = 200;              // blocks that keep the largest present device (132 to 160 multiprocessors) busy
constexpr int kLeastRows = 4;           // output rows that a block keeps, however few blocks there are

struct ConvPlan : Shape {
  int tile_h, tile_w, tiles_y, tiles_x;  // outputs of a block, blocks along an image
  int slice_rows, slice_stride;          // input rows of a slice; floats from one column of its products to the next
  int columns;                           // output channels times taps
  int blocks;                            // of 16 words of channels
};

struct ConvTensors {
  const void *x, *w, *bias;  // dense channels-last; bias may be null
  void* y;
  int activation;
  float slope;
};

// The part of the input that a rectangle of outputs reads, without what lies outside of the image; may be empty.
struct Patch {
  int row, rows, column, columns;
};

GF_BOTH Patch patch_of(const ConvPlan& p, int out_row, int out_rows, int out_column, int out_columns) {
  const int top = out_row * p.stride_h - p.pad_h, left = out_column * p.stride_w - p.pad_w;
  const int bottom = top + (out_rows - 1) * p.stride_h + (p.kernel_h - 1) * p.dilation_h + 1;
  const int right = left + (out_columns - 1) * p.stride_w + (p.kernel_w - 1) * p.dilation_w + 1;
  const int row = greater(top, 0), column = greater(left, 0);
  return {row, greater(lesser(bottom, p.in_h) - row, 0), column, greater(lesser(right, p.in_w) - column, 0)};
}

// Floats between a slice's columns: 4 more than a multiple of 32, so that a warp's stores of Z meet 32 different banks.
GF_BOTH int slice_stride(int pixels) { return ceil_div(pixels, 2 * kRows) * 2 * kRows + 4; }

// Bytes of shared memory: the weights of a pass, the products of a slice, the sums.
inline size_t conv_shared(const ConvPlan& p, int column_tiles) {
  const size_t weights = static_cast<size_t>(lesser(p.blocks, kPassBlocks)) * column_tiles * kWarp * sizeof(Chunk);
  const size_t products = static_cast<size_t>(column_tiles) * kColumns * p.slice_stride * sizeof(float);
  return weights + products + static_cast<size_t>(p.tile_h) * p.tile_w * p.out_channels * sizeof(float);
}

// Tiles of 8 columns that a pass has: as many as its registers hold, fewer for small kernels.
inline int conv_column_tiles(const ConvPlan& p, Product product) { return product == kIeee || p.columns <= 32 ? 4 : 7; }

// Throws std::invalid_argument for what the kernels cannot do.
inline ConvPlan plan_conv(const ConvGeometry& g, Product product) {
  constexpr int64_t most = int64_t{1} << 30;
  ConvPlan p{};
  static_cast<Shape&>(p) = shape_of(g, g.out_channels, "output channels");
  refuse_unless(g.in_h * g.in_w * g.in_channels < most, "elements of an image", g.in_h * g.in_w * g.in_channels, "less than 2^30");
  p.columns = p.out_channels * p.kernel_h * p.kernel_w;
  p.blocks = ceil_div(p.in_channels, 16 * (is_half(product) ? 2 : 1));
  // As wide as one row of pixels of a slice allows; a patch is widest in the middle of a row.
  const int reach = (p.kernel_w - 1) * p.dilation_w + 1;
  const int fitting = p.in_w <= kMostPixels ? p.out_w : (kMostPixels - reach) / p.stride_w + 1;
  refuse_unless(p.in_w <= kMostPixels || reach <= kMostPixels, "columns that a kernel spans", reach, "at most 256");
  const int widest = lesser(lesser(fitting, p.out_w), kMostSums / kMostFew);
  p.tiles_x = ceil_div(p.out_w, widest);
  p.tile_w = ceil_div(p.out_w, p.tiles_x);
  const int patch_w = lesser(p.in_w, (p.tile_w - 1) * p.stride_w + reach);
  p.tile_h = lesser(p.out_h, kMostSums / (p.tile_w * p.out_channels));
  while (g.batch * p.tiles_x * ceil_div(p.out_h, p.tile_h) < kBusy && p.tile_h > kLeastRows) p.tile_h = (p.tile_h + 1) / 2;
  p.tiles_y = ceil_div(p.out_h, p.tile_h);
  const int patch_h = lesser(p.in_h, (p.tile_h - 1) * p.stride_h + (p.kernel_h - 1) * p.dilation_h + 1);
  p.slice_rows = ceil_div(patch_h, ceil_div(patch_h, kMostPixels / patch_w));
  p.slice_stride = slice_stride(p.slice_rows * patch_w);
  refuse_unless(g.batch * p.tiles_x * p.tiles_y < (int64_t{1} << 31), "blocks", g.batch * p.tiles_x * p.tiles_y, "less than 2^31");
  return p;
}

}  // namespace gan_fast::cuda
