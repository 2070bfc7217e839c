// batch_norm_act and its backward over plain pointers. Checked here: codes, sizes, null pointers; the rest (dtypes, shapes,
// contiguity) is the Python wrappers' part.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "bindings.h"
#include "bindings_checks.h"
#include "cpu/batch_norm_act.h"
#include "cpu/batch_norm_act_backward.h"

namespace py = pybind11;

namespace gan_fast {
namespace {

void check_table(int64_t rows, int64_t channels) {
  check_size("rows", rows);
  check_size("channels", channels);
  int64_t n = 0;
  require(!__builtin_mul_overflow(rows, channels, &n), "rows * channels",
          std::to_string(rows) + " * " + std::to_string(channels), "a product below 2^63");
}

void check_parameters(int dtype, int parameter_dtype) {
  require(parameter_dtype == dtype || (dtype == 2 && parameter_dtype == 0), "parameter_dtype", std::to_string(parameter_dtype),
          "that of x, or 0 (float32) beside 2 (bfloat16)");
}

void run_batch_norm_act(int dtype, int parameter_dtype, int64_t rows, int64_t channels, Address x, Address weight,
                        Address bias, bool training, Address mean, Address var, double eps, int act, double slope, Address y,
                        int threads) {
  check_storage(dtype);
  check_parameters(dtype, parameter_dtype);
  check_table(rows, channels);
  check_activation(act);
  check_threads(threads);
  const bool any = rows > 0 && channels > 0;
  const BatchNormAct args{dtype,
                          parameter_dtype,
                          rows,
                          channels,
                          pointer<const void>("x", x, any),
                          pointer<const void>("weight", weight, false),
                          pointer<const void>("bias", bias, false),
                          training,
                          pointer<double>("mean", mean, any),
                          pointer<double>("var", var, any),
                          eps,
                          act,
                          slope,
                          pointer<void>("y", y, any)};
  py::gil_scoped_release release;
  batch_norm_act(args, threads);
}

void run_batch_norm_act_backward(int dtype, int parameter_dtype, int64_t rows, int64_t channels, Address grad_output,
                                 Address x, Address weight, Address bias, Address mean, Address var, bool training,
                                 double eps, int act, double slope, Address grad_input, Address grad_weight,
                                 Address grad_bias, int threads) {
  check_storage(dtype);
  check_parameters(dtype, parameter_dtype);
  check_table(rows, channels);
  check_activation(act);
  check_threads(threads);
  const bool any = rows > 0 && channels > 0;
  const BatchNormActBackward args{dtype,
                                  parameter_dtype,
                                  rows,
                                  channels,
                                  pointer<const void>("grad_output", grad_output, any),
                                  pointer<const void>("x", x, any),
                                  pointer<const void>("weight", weight, false),
                                  pointer<const void>("bias", bias, false),
                                  pointer<const double>("mean", mean, any),
                                  pointer<const double>("var", var, any),
                                  training,
                                  eps,
                                  act,
                                  slope,
                                  pointer<void>("grad_input", grad_input, any),
                                  pointer<void>("grad_weight", grad_weight, any),
                                  pointer<void>("grad_bias", grad_bias, any)};
  py::gil_scoped_release release;
  batch_norm_act_backward(args, threads);
}

}  // namespace

void bind_normalization(py::module_& m) {
  m.def("batch_norm_act", &run_batch_norm_act, py::arg("dtype"), py::arg("parameter_dtype"), py::arg("rows"),
        py::arg("channels"), py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("training"), py::arg("mean"), py::arg("var"), py::arg("eps"),
        py::arg("act"), py::arg("slope"), py::arg("y"), py::arg("threads"),
        "y = act((x - mean) / sqrt(var + eps) * weight + bias)\n\n"
        "x, y: (rows, channels) contiguous, not overlapping; weight, bias: (channels) or 0, for 1 and 0. mean, var:\n"
        "(channels) float64, in training written (var divided by rows), otherwise read. dtype: 0 float32, 1 float64 (always\n"
        "the portable level), 2 bfloat16 (computed in float32); parameter_dtype: of weight and bias, dtype or beside bfloat16\n"
        "0. act: 0 none, 1 relu, 2 leaky_relu, 3 tanh, 4 sigmoid. Sums are taken over fixed pieces: the same bits for any\n"
        "number of threads.");
  m.def("batch_norm_act_backward", &run_batch_norm_act_backward, py::arg("dtype"), py::arg("parameter_dtype"),
        py::arg("rows"), py::arg("channels"),
        py::arg("grad_output"), py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("mean"), py::arg("var"),
        py::arg("training"), py::arg("eps"), py::arg("act"), py::arg("slope"), py::arg("grad_input"), py::arg("grad_weight"),
        py::arg("grad_bias"), py::arg("threads"),
        "The gradients of batch_norm_act with respect to x, weight and bias; in training mean and var are functions of x\n\n"
        "grad_output, x, grad_input: (rows, channels) contiguous, grad_input overlapping neither; grad_weight, grad_bias:\n"
        "(channels), always written where there are rows; the others as batch_norm_act has them.");
}

}  // namespace gan_fast
