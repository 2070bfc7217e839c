// conv, conv_transpose and conv_weight_grad over plain pointers. The shapes were checked by the Python wrappers; what is checked
// here is what would otherwise write outside memory or divide by zero.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "bindings.h"
#include "bindings_geometry.h"
#include "common/activation.h"
#include "common/bf16.h"
#include "cpu/conv.h"
#include "cpu/conv_transpose.h"
#include "cpu/conv_weight_grad.h"

namespace py = pybind11;

namespace gan_fast {
namespace {

constexpr int kFloat32 = 0, kFloat64 = 1, kBfloat16 = 2;

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
