// conv, conv_transpose and conv_weight_grad over plain pointers. The shapes were checked by the Python wrappers; what is checked
// here is what would otherwise write outside memory or divide by zero.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "bindings.h"
#include "common/activation.h"
#include "common/bf16.h"
#include "cpu/conv.h"
#include "cpu/conv_transpose.h"
#include "cpu/conv_weight_grad.h"

namespace py = pybind11;

namespace gan_fast {
namespace {

constexpr int kFloat32 = 0, kFloat64 = 1, kBfloat16 = 2;

constexpr std::array<const char*, 16> kFields = {"batch",    "in_channels", "in_h",     "in_w",  "out_channels", "out_h",
                                                 "out_w",    "kernel_h",    "kernel_w", "stride_h", "stride_w", "pad_h",
                                                 "pad_w",    "dilation_h",  "dilation_w", "groups"};

constexpr int64_t kMostPositions = int64_t{1} << 40;  // along one axis, and of padding
constexpr int64_t kMostSpread = int64_t{1} << 20;     // of stride and dilation
constexpr double kMostPacked = 0x1p40, kMostSpanned = 0x1p58;

// Sizes are bounded by the memory of real tensors; padding, stride and dilation by nothing. Within these bounds no product of the
// drivers' leaves 64 bits, and what they pack for the smallest tile (16 outputs of one row) may at worst be more than there is.
void check_spread(const ConvGeometry& g) {
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

ConvGeometry parse_geometry(const py::tuple& values) {
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

int parse_activation(const char* name, int code) {
  if (code < kNone || code > kSigmoid) {
    throw std::invalid_argument(std::string(name) + "=" + std::to_string(code) +
                                ": expected 0 none, 1 relu, 2 leaky_relu, 3 tanh or 4 sigmoid");
  }
  return code;
}

void parse_dtype(int dtype) {
  if (dtype != kFloat32 && dtype != kFloat64 && dtype != kBfloat16) {
    throw std::invalid_argument("dtype=" + std::to_string(dtype) + ": expected 0 (float32), 1 (float64) or 2 (bfloat16)");
  }
}

template <class T>
T* at(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

template <class T>
using Convolution = void (*)(const ConvGeometry&, const T*, const T*, T*, const Epilogue&, const Prologue&, int);

template <Convolution<float> run32, Convolution<double> run64, Convolution<Bf16> run16>
void convolution(int dtype, const py::tuple& geometry, std::uintptr_t x, std::uintptr_t weight, std::uintptr_t bias,
                 std::uintptr_t y, int activation, double slope, std::uintptr_t prologue_y, int prologue_activation,
                 double prologue_slope, int threads) {
  parse_dtype(dtype);
  const ConvGeometry g = parse_geometry(geometry);
  const Epilogue epilogue{at<void>(bias), parse_activation("activation", activation), slope};
  const Prologue prologue{at<void>(prologue_y), parse_activation("prologue_activation", prologue_activation),
                          prologue_slope};
  py::gil_scoped_release release;
  if (dtype == kFloat64) {
    run64(g, at<const double>(x), at<const double>(weight), at<double>(y), epilogue, prologue, threads);
  } else if (dtype == kBfloat16) {
    run16(g, at<const Bf16>(x), at<const Bf16>(weight), at<Bf16>(y), epilogue, prologue, threads);
  } else {
    run32(g, at<const float>(x), at<const float>(weight), at<float>(y), epilogue, prologue, threads);
  }
}

void weight_grad(int dtype, const py::tuple& geometry, bool transposed, std::uintptr_t x, std::uintptr_t grad_output,
                 std::uintptr_t grad_weight, std::uintptr_t grad_bias, std::uintptr_t prologue_y, int prologue_activation,
                 double prologue_slope, int threads) {
  parse_dtype(dtype);
  const ConvGeometry g = parse_geometry(geometry);
  const Prologue prologue{at<void>(prologue_y), parse_activation("prologue_activation", prologue_activation),
                          prologue_slope};
  py::gil_scoped_release release;
  if (dtype == kFloat64) {
    conv_weight_grad(g, transposed, at<const double>(x), at<const double>(grad_output), at<double>(grad_weight),
                     at<double>(grad_bias), prologue, threads);
  } else if (dtype == kBfloat16) {
    conv_weight_grad(g, transposed, at<const Bf16>(x), at<const Bf16>(grad_output), at<Bf16>(grad_weight), at<Bf16>(grad_bias),
                     prologue, threads);
  } else {
    conv_weight_grad(g, transposed, at<const float>(x), at<const float>(grad_output), at<float>(grad_weight),
                     at<float>(grad_bias), prologue, threads);
  }
}

}  // namespace

void bind_convolution(py::module_& m) {
  const auto define = [&m](const char* name, auto function, const char* doc) {
    m.def(name, function, doc, py::arg("dtype"), py::arg("geometry"), py::arg("x"), py::arg("weight"), py::arg("bias"),
          py::arg("y"), py::arg("activation"), py::arg("slope"), py::arg("prologue_y"), py::arg("prologue_activation"),
          py::arg("prologue_slope"), py::arg("threads"));
  };
  define("conv", &convolution<conv<float>, conv<double>, conv<Bf16>>, "y = act(conv(x * act'(prologue_y)) + bias); channels-last x, y; weight (O, I/g, kh, kw).");
  define("conv_transpose", &convolution<conv_transpose<float>, conv_transpose<double>, conv_transpose<Bf16>>,
         "y = act(conv_transpose(x * act'(prologue_y)) + bias); channels-last x, y; weight (I, O/g, kh, kw).");
  m.def("conv_weight_grad", &weight_grad,
        "Weight gradient (torch's layout) of conv or conv_transpose and, if grad_bias is not 0, the bias gradient, from the forward "
        "input x and grad_output * act'(prologue_y).",
        py::arg("dtype"), py::arg("geometry"), py::arg("transposed"), py::arg("x"), py::arg("grad_output"), py::arg("grad_weight"),
        py::arg("grad_bias"), py::arg("prologue_y"), py::arg("prologue_activation"), py::arg("prologue_slope"),
        py::arg("threads"));
}

}  // namespace gan_fast
