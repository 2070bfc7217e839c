// One number of the matrix X (conv_transpose_plan.h), from a tensor of few channels; shared by the kernels that multiply by it.
#pragma once

#include "activate.h"
#include "conv_transpose_plan.h"
#include "products.h"

namespace gan_fast::cuda {

GF_DEVICE Tap tap_of(const TransposePlan& p, int k) {
  const int taps = p.kernel_h * p.kernel_w, tap = k % taps;
  return {tap / p.kernel_w * p.dilation_h, tap % p.kernel_w * p.dilation_w, k / taps, k < p.inner};
}

GF_DEVICE Pixel pixel_of(const TransposePlan& p, int number) {
  const int image = number / (p.out_h * p.out_w), within = number % (p.out_h * p.out_w);
  return {image * p.in_h * p.in_w, within / p.out_w + p.pad_h, within % p.out_w + p.pad_w, number < p.pixels};
}

// Input pixel that a tap of an output pixel reads, or -1.
GF_DEVICE int position_of(const TransposePlan& p, const Pixel& pixel, const Tap& tap) {
  int y = pixel.y - tap.down, x = pixel.x - tap.right;
  if (!pixel.inside || !tap.inside || y < 0 || x < 0) return -1;
  if (p.stride_h != 1) {
    if (y % p.stride_h != 0) return -1;
    y /= p.stride_h;
  }
  if (p.stride_w != 1) {
    if (x % p.stride_w != 0) return -1;
    x /= p.stride_w;
  }
  return y < p.in_h && x < p.in_w ? pixel.image + y * p.in_w + x : -1;
}

template <Product P, class M>
GF_DEVICE uint32_t gathered(M& m, const TransposePlan& p, const TransposeTensors& t, const Pixel& pixel, const Tap& tap) {
  const int position = position_of(p, pixel, tap);
  if (position < 0) return 0;
  const int place = position * p.in_channels + tap.input;
  const Element<P> bits = m.load(static_cast<const Element<P>*>(t.x) + place);
  if (t.prologue == nullptr) return bits;
  const Element<P> y = m.load(static_cast<const Element<P>*>(t.prologue) + place);
  const float grad = through_activation(m.template widen<P>(bits), m.template widen<P>(y), t.prologue_activation, t.prologue_slope);
  return m.template narrow<P>(grad);
}

}  // namespace gan_fast::cuda
