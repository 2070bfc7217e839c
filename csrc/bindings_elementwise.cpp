// bias_act, act_grad, bce_with_logits and transpose over plain pointers. Checked here: codes, sizes, null pointers; the rest (dtypes,
// shapes, contiguity) is the Python wrappers' part.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "bindings.h"
#include "bindings_checks.h"
#include "common/activation.h"
#include "cpu/act_grad.h"
#include "cpu/bce_with_logits.h"
#include "cpu/bias_act.h"
#include "cpu/transpose.h"

namespace py = pybind11;

namespace gan_fast {
namespace {

void run_bias_act(int dtype, int64_t outer, int64_t channels, int64_t inner, Address x, Address bias, Address y, int act,
                  double slope, int threads) {
  check_storage(dtype);
  check_size("outer", outer);
  check_size("channels", channels);
  check_size("inner", inner);
  check_activation(act);
  check_threads(threads);
  int64_t n = 0;
  const bool too_large = __builtin_mul_overflow(outer, channels, &n) || __builtin_mul_overflow(n, inner, &n);
  require(!too_large, "outer * channels * inner",
          std::to_string(outer) + " * " + std::to_string(channels) + " * " + std::to_string(inner), "a product below 2^63");
  const BiasAct args{dtype,
                     outer,
                     channels,
                     inner,
                     pointer<const void>("x", x, n > 0),
                     pointer<const void>("bias", bias, false),
                     pointer<void>("y", y, n > 0),
                     act,
                     slope};
  py::gil_scoped_release release;
  bias_act(args, threads);
}

void run_transpose(int dtype, int64_t matrices, int64_t rows, int64_t columns, Address from, Address to, int threads) {
  check_storage(dtype);
  check_size("matrices", matrices);
  check_size("rows", rows);
  check_size("columns", columns);
  check_threads(threads);
  int64_t n = 0;
  const bool too_large = __builtin_mul_overflow(matrices, rows, &n) || __builtin_mul_overflow(n, columns, &n);
  require(!too_large, "matrices * rows * columns",
          std::to_string(matrices) + " * " + std::to_string(rows) + " * " + std::to_string(columns), "a product below 2^63");
  const Transpose args{dtype, matrices, rows, columns, pointer<const void>("from", from, n > 0), pointer<void>("to", to, n > 0)};
  py::gil_scoped_release release;
  if (n > 0) transpose(args, threads);
}

void run_act_grad(int dtype, int64_t n, Address grad_output, Address y, Address out, int act, double slope, int threads) {
  check_storage(dtype);
  check_size("n", n);
  check_activation(act);
  check_threads(threads);
  require(act != kLeakyRelu || slope > 0.0, "slope", std::to_string(slope),
          "a slope > 0: with any other, the output does not tell the sign of the input");
  const ActGrad args{dtype,
                     n,
                     pointer<const void>("grad_output", grad_output, n > 0),
                     pointer<const void>("y", y, n > 0),
                     pointer<void>("out", out, n > 0),
                     act,
                     slope};
  py::gil_scoped_release release;
  act_grad(args, threads);
}

void run_bce_with_logits(int dtype, int64_t n, Address x, Address target, double target_value, Address weight,
                         Address pos_weight, int reduction, Address loss, Address grad, int threads) {
  check_storage(dtype);
  check_size("n", n);
  check_threads(threads);
  require(reduction >= kReduceNone && reduction <= kReduceSum, "reduction", std::to_string(reduction),
          "0 none, 1 mean or 2 sum");
  const BceWithLogits args{dtype,
                           n,
                           pointer<const void>("x", x, n > 0),
                           pointer<const void>("target", target, false),
                           target_value,
                           pointer<const void>("weight", weight, false),
                           pointer<const void>("pos_weight", pos_weight, false),
                           reduction,
                           pointer<void>("loss", loss, n > 0 || reduction != kReduceNone),
                           pointer<void>("grad", grad, false)};
  py::gil_scoped_release release;
  bce_with_logits(args, threads);
}

}  // namespace

void bind_elementwise(py::module_& m) {
  m.def("bias_act", &run_bias_act, py::arg("dtype"), py::arg("outer"), py::arg("channels"), py::arg("inner"), py::arg("x"),
        py::arg("bias"), py::arg("y"), py::arg("act"), py::arg("slope"), py::arg("threads"),
        "y = act(x + bias)\n\n"
        "x, y: (outer, channels, inner) contiguous, y may be x; bias: (channels) or 0. dtype: 0 float32, 1 float64 (always\n"
        "the portable level), 2 bfloat16 (computed in float32, rounded once). act: 0 none, 1 relu, 2 leaky_relu, 3 tanh, 4 sigmoid. NaN goes through every activation.");
  m.def("transpose", &run_transpose, py::arg("dtype"), py::arg("matrices"), py::arg("rows"), py::arg("columns"), py::arg("from_"),
        py::arg("to"), py::arg("threads"),
        "transpose(dtype, matrices, rows, columns, from_, to, threads)\n\n"
        "to[matrix][column][row] = from_[matrix][row][column], both dense; they must not overlap.");
  m.def("act_grad", &run_act_grad, py::arg("dtype"), py::arg("n"), py::arg("grad_output"), py::arg("y"), py::arg("out"),
        py::arg("act"), py::arg("slope"), py::arg("threads"),
        "out = grad_output * act'(y), the derivative expressed by the output y\n\n"
        "All: n contiguous elements; out may be grad_output or y. leaky_relu needs slope > 0.");
  m.def("bce_with_logits", &run_bce_with_logits, py::arg("dtype"), py::arg("n"), py::arg("x"), py::arg("target"),
        py::arg("target_value"), py::arg("weight"), py::arg("pos_weight"), py::arg("reduction"), py::arg("loss"),
        py::arg("grad"), py::arg("threads"),
        "loss = weight * [(1 - t) x + (1 + (pos_weight - 1) t) log(1 + exp(-x))], and d loss / d x in the same pass\n\n"
        "x: n contiguous logits. target: n elements, or 0: t = target_value everywhere. weight, pos_weight: n elements\n"
        "(broadcast by the caller), or 0: 1. reduction: 0 none (loss: n elements), 1 mean or 2 sum (loss: one element; the\n"
        "mean of nothing is NaN). grad: n elements, the derivative of the reduced loss (for mean: divided by n), or 0.\n"
        "Sums are taken in double over fixed pieces: the same bits for any number of threads.");
}

}  // namespace gan_fast
