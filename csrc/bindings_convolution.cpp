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
#include "cpu/columns.h"
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
using Convolution = void (*)(const ConvGeometry&, const T*, const T*, bool, T*, const Epilogue&, const Prologue&, int);

template <Convolution<float> run32, Convolution<double> run64, Convolution<Bf16> run16>
void convolution(int dtype, const py::tuple& geometry, std::uintptr_t x, std::uintptr_t weight, bool weight_last,
                 std::uintptr_t bias, std::uintptr_t y, int activation, double slope, std::uintptr_t prologue_y, int prologue_activation,
                 double prologue_slope, int threads) {
  parse_dtype(dtype);
  const ConvGeometry g = parse_geometry(geometry);
  const Epilogue epilogue{at<void>(bias), parse_activation("activation", activation), slope};
  const Prologue prologue{at<void>(prologue_y), parse_activation("prologue_activation", prologue_activation),
                          prologue_slope};
  py::gil_scoped_release release;
  if (dtype == kFloat64) {
    run64(g, at<const double>(x), at<const double>(weight), weight_last, at<double>(y), epilogue, prologue, threads);
  } else if (dtype == kBfloat16) {
    run16(g, at<const Bf16>(x), at<const Bf16>(weight), weight_last, at<Bf16>(y), epilogue, prologue, threads);
  } else {
    run32(g, at<const float>(x), at<const float>(weight), weight_last, at<float>(y), epilogue, prologue, threads);
  }
}

void weight_grad(int dtype, const py::tuple& geometry, bool transposed, std::uintptr_t x, std::uintptr_t grad_output,
                 std::uintptr_t grad_weight, bool weight_last, std::uintptr_t grad_bias, std::uintptr_t prologue_y,
                 int prologue_activation, double prologue_slope, int threads) {
  parse_dtype(dtype);
  const ConvGeometry g = parse_geometry(geometry);
  const Prologue prologue{at<void>(prologue_y), parse_activation("prologue_activation", prologue_activation),
                          prologue_slope};
  py::gil_scoped_release release;
  if (dtype == kFloat64) {
    conv_weight_grad(g, transposed, at<const double>(x), at<const double>(grad_output), at<double>(grad_weight), weight_last,
                     at<double>(grad_bias), prologue, threads);
  } else if (dtype == kBfloat16) {
    conv_weight_grad(g, transposed, at<const Bf16>(x), at<const Bf16>(grad_output), at<Bf16>(grad_weight), weight_last, at<Bf16>(grad_bias),
                     prologue, threads);
  } else {
    conv_weight_grad(g, transposed, at<const float>(x), at<const float>(grad_output), at<float>(grad_weight), weight_last,
                     at<float>(grad_bias), prologue, threads);
  }
}

template <class T>
Columns<T> columns_of(const py::tuple& geometry, bool transposed, const py::tuple& strides, bool taps_inner, std::uintptr_t image,
                      std::uintptr_t columns) {
  if (strides.size() != 4) {
    throw std::invalid_argument("strides has " + std::to_string(strides.size()) + " numbers: expected 4 (sample, channel, row, column)");
  }
  const ImageStrides s{strides[0].cast<int64_t>(), strides[1].cast<int64_t>(), strides[2].cast<int64_t>(), strides[3].cast<int64_t>()};
  return {columns_geometry(parse_geometry(geometry), transposed), s, taps_inner, at<T>(image), at<T>(columns)};
}

void check_columns_dtype(int dtype) {
  if (dtype != kFloat32 && dtype != kFloat64) {
    throw std::invalid_argument("dtype=" + std::to_string(dtype) + ": expected 0 (float32) or 1 (float64)");
  }
}

void run_unfold(int dtype, const py::tuple& geometry, bool transposed, std::uintptr_t image, const py::tuple& strides, bool taps_inner,
                std::uintptr_t columns, int threads) {
  check_columns_dtype(dtype);
  const auto run = [&](auto element) {
    const auto c = columns_of<decltype(element)>(geometry, transposed, strides, taps_inner, image, columns);
    py::gil_scoped_release release;
    unfold(c, threads);
  };
  dtype == kFloat64 ? run(double{}) : run(float{});
}

void run_fold(int dtype, const py::tuple& geometry, bool transposed, std::uintptr_t columns, bool taps_inner, std::uintptr_t bias,
              int activation, double slope, std::uintptr_t image, const py::tuple& strides, int threads) {
  check_columns_dtype(dtype);
  const Epilogue epilogue{at<void>(bias), parse_activation("activation", activation), slope};
  const auto run = [&](auto element) {
    const auto c = columns_of<decltype(element)>(geometry, transposed, strides, taps_inner, image, columns);
    py::gil_scoped_release release;
    fold(c, epilogue, threads);
  };
  dtype == kFloat64 ? run(double{}) : run(float{});
}

}  // namespace

void bind_convolution(py::module_& m) {
  const auto define = [&m](const char* name, auto function, const char* doc) {
    m.def(name, function, doc, py::arg("dtype"), py::arg("geometry"), py::arg("x"), py::arg("weight"), py::arg("weight_last"),
          py::arg("bias"), py::arg("y"), py::arg("activation"), py::arg("slope"), py::arg("prologue_y"), py::arg("prologue_activation"),
          py::arg("prologue_slope"), py::arg("threads"));
  };
  define("conv", &convolution<conv<float>, conv<double>, conv<Bf16>>, "y = act(conv(x * act'(prologue_y)) + bias); channels-last x, y; weight (O, I/g, kh, kw), or in memory (O, kh, kw, I/g) if weight_last.");
  define("conv_transpose", &convolution<conv_transpose<float>, conv_transpose<double>, conv_transpose<Bf16>>,
         "y = act(conv_transpose(x * act'(prologue_y)) + bias); channels-last x, y; weight (I, O/g, kh, kw), or in memory (I, kh, kw, O/g) if weight_last.");
  m.def("conv_weight_grad", &weight_grad,
        "Weight gradient (torch's layout, or channels-last if weight_last) of conv or conv_transpose and, if grad_bias is not 0, the bias gradient, from the forward "
        "input x and grad_output * act'(prologue_y).",
        py::arg("dtype"), py::arg("geometry"), py::arg("transposed"), py::arg("x"), py::arg("grad_output"), py::arg("grad_weight"),
        py::arg("weight_last"), py::arg("grad_bias"), py::arg("prologue_y"), py::arg("prologue_activation"), py::arg("prologue_slope"),
        py::arg("threads"));
  m.def("unfold", &run_unfold,
        "Columns of an image: [batch * positions][channels * taps] (taps innermost if taps_inner, else channels). The image is "
        "the input of the convolution, or the output of the transposed one, that `geometry` describes; groups are not looked at.",
        py::arg("dtype"), py::arg("geometry"), py::arg("transposed"), py::arg("image"), py::arg("strides"), py::arg("taps_inner"),
        py::arg("columns"), py::arg("threads"));
  m.def("fold", &run_fold, "image = act(sum of the columns on each pixel + bias), the inverse way of unfold.", py::arg("dtype"),
        py::arg("geometry"), py::arg("transposed"), py::arg("columns"), py::arg("taps_inner"), py::arg("bias"), py::arg("activation"),
        py::arg("slope"), py::arg("image"), py::arg("strides"), py::arg("threads"));
}

}  // namespace gan_fast
