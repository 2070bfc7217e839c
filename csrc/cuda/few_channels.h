// What the convolutions to few channels, from few channels and their weight gradient share: the shape, and what they refuse.
#pragma once

#include <array>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "common/geometry.h"
#include "products.h"

namespace gan_fast::cuda {

constexpr int kMostFew = 4;  // channels on the side that has few

// A convolution without groups, in the device's integers.
struct Shape {
  int in_channels, in_h, in_w, out_channels, out_h, out_w, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
};

inline void refuse_unless(bool right, const char* what, int64_t value, const char* expected) {
  if (!right) throw std::invalid_argument(std::string(what) + "=" + std::to_string(value) + ": expected " + expected);
}

// The shape of a geometry whose `few` channels are called `name`. Throws std::invalid_argument for what the kernels cannot do;
// positions are counted with 32 bits.
inline Shape shape_of(const ConvGeometry& g, int64_t few, const char* name) {
  constexpr int64_t most = int64_t{1} << 30;
  refuse_unless(g.groups == 1, "groups", g.groups, "1");
  refuse_unless(few >= 1 && few <= kMostFew, name, few, "1 to 4");
  for (const auto& [out, stride, pad, kernel, dilation] :
       {std::array<int64_t, 5>{g.out_h, g.stride_h, g.pad_h, g.kernel_h, g.dilation_h},
        std::array<int64_t, 5>{g.out_w, g.stride_w, g.pad_w, g.kernel_w, g.dilation_w}}) {
    const int64_t span = out * stride + (pad < 0 ? -pad : pad) + kernel * dilation;
    refuse_unless(span < most, "rows or columns that an image's outputs span", span, "less than 2^30");
  }
  refuse_unless(g.kernel_h * g.kernel_w <= most / kMostFew, "taps", g.kernel_h * g.kernel_w, "less than 2^28");
  const auto narrow = [](int64_t number) { return static_cast<int>(number); };
  return {narrow(g.in_channels),  narrow(g.in_h),     narrow(g.in_w),       narrow(g.out_channels), narrow(g.out_h),
          narrow(g.out_w),        narrow(g.kernel_h), narrow(g.kernel_w),   narrow(g.stride_h),     narrow(g.stride_w),
          narrow(g.pad_h),        narrow(g.pad_w),    narrow(g.dilation_h), narrow(g.dilation_w)};
}

inline bool on_16_bytes(const void* address) { return reinterpret_cast<uintptr_t>(address) % sizeof(Chunk) == 0; }

// Whether a pixel's channels are whole chunks.
inline bool in_chunks(int channels, Product product) { return channels % (is_half(product) ? 8 : 4) == 0; }

// f(product) with the constant of the kernels that serve it.
template <class F>
void with_product(Product product, F f) {
  switch (product) {
    case kBfloat16: return f(std::integral_constant<Product, kBfloat16>{});
    case kFloat16: return f(std::integral_constant<Product, kFloat16>{});
    case kTf32: return f(std::integral_constant<Product, kTf32>{});
    case kIeee: return f(std::integral_constant<Product, kIeee>{});
  }
}

// f(product, tiles of columns, aligned) with the constants of a kernel that has Few tiles, or Many where it has the matrix unit.
template <int Few, int Many, class F>
void with_kernel(Product product, int tiles, bool aligned, F f) {
  with_product(product, [&](auto kind) {
    const auto tiled = [&](auto count) {
      if (aligned) {
        f(kind, count, std::true_type{});
      } else {
        f(kind, count, std::false_type{});
      }
    };
    if (tiles == Few) {
      tiled(std::integral_constant<int, Few>{});
    } else if constexpr (decltype(kind)::value != kIeee) {
      tiled(std::integral_constant<int, Many>{});
    }
  });
}

}  // namespace gan_fast::cuda
