// Geometry of a 2-D convolution or transposed convolution (1-D: the y axis has size 1, kernel 1, stride 1, padding 0).
#pragma once

#include <cstdint>

namespace gan_fast {

static constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct ConvGeometry {
  int64_t batch;
  int64_t in_channels, in_h, in_w;     // the forward operator's input
  int64_t out_channels, out_h, out_w;  // the forward operator's output; the end padding follows from it and may be negative
  int64_t kernel_h, kernel_w;
  int64_t stride_h, stride_w;
  int64_t pad_h, pad_w;  // begin padding, may be negative
  int64_t dilation_h, dilation_w;
  int64_t groups;
};

// Epilogue y = act(conv + bias) and prologue x * act'(prologue_y), as the operators' schemas have them.
struct Epilogue {
  const void* bias;  // (out_channels) or null
  int activation;
  double slope;
};

struct Prologue {
  const void* y;  // same shape and layout as the operand it multiplies, or null
  int activation;
  double slope;
};

}  // namespace gan_fast
