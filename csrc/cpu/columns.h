// The columns of a convolution: what the kernel's window covers of an image at each position, side by side in one row, so that a
// convolution becomes one product of matrices with the weights as they lie. That is the way for many weights and few positions,
// where packing the weights costs more than their products.
#pragma once

#include <cstdint>

#include "common/geometry.h"
#include "cpu/isa.h"

namespace gan_fast {

// The image's pixel (y, x) = position * stride - pad + tap * dilation along each axis. The image is a convolution's input, or a
// transposed convolution's output; the positions are the pixels of the other side.
struct ColumnsGeometry {
  int64_t batch, channels;
  int64_t image_h, image_w;
  int64_t positions_h, positions_w;
  int64_t kernel_h, kernel_w;
  int64_t stride_h, stride_w;
  int64_t pad_h, pad_w;
  int64_t dilation_h, dilation_w;
};

ColumnsGeometry columns_geometry(const ConvGeometry& g, bool transposed);

// In elements.
struct ImageStrides {
  int64_t sample, channel, row, column;
};

// columns: [batch * positions][channels * taps], a column being channel * taps + tap if `taps_inner` (weights in PyTorch's plain
// order), else tap * channels + channel (weights in channels-last order). T: float or double.
template <class T>
struct Columns {
  ColumnsGeometry g;
  ImageStrides strides;
  bool taps_inner;
  T* image;
  T* columns;
};

template <class T>
void unfold(const Columns<T>& c, int threads);

// image = act(sums of the columns that lie on each pixel + bias). The order of a pixel's sum is that of the positions: the same bits
// for any number of threads.
template <class T>
void fold(const Columns<T>& c, const Epilogue& epilogue, int threads);

constexpr int64_t kFoldChannels = 32;  // of one task's sums

template <class T>
struct FoldJob {
  int64_t sample, channel, channels;  // from, and how many of kFoldChannels
  T* sums;                            // [pixels][kFoldChannels]
  T* block;                           // [taps][kFoldChannels]
};

template <class T>
struct ColumnsFunctions {
  void (*unfold_line)(const Columns<T>& c, int64_t sample, int64_t py);
  void (*fold_channels)(const Columns<T>& c, const Epilogue& epilogue, const FoldJob<T>& job);
};

struct ColumnsTable {
  ColumnsFunctions<float> f32;
  ColumnsFunctions<double> f64;  // portable level only
};

GAN_FAST_DECLARE_TABLE(ColumnsTable, columns_table)

}  // namespace gan_fast
