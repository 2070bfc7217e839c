// gan_fast._cuda: the CUDA kernels over plain pointers, a device's number and a stream's handle. Checked here: codes, sizes, null
// pointers; the rest (dtypes, shapes, contiguity) is the Python wrappers' part.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "bindings_checks.h"
#include "bindings_geometry.h"
#include "cuda/kernels.h"

namespace py = pybind11;

namespace gan_fast::cuda {
namespace {

Call parse_call(int product, int device, uintptr_t stream) {
  require(product >= 0 && product <= 3, "product", std::to_string(product), "0 bfloat16, 1 float16, 2 tf32 or 3 float32");
  require(device >= 0, "device", std::to_string(device), "a device's number");
  return {product, device, stream};
}

py::dict build_info() {
  py::dict info;
  info["version"] = GAN_FAST_VERSION;
  info["compiler"] = GAN_FAST_COMPILER;
  info["targets"] = GAN_FAST_CUDA_TARGETS;
  return info;
}

void run_conv(int product, const py::tuple& geometry, Address x, Address weight, Address bias, Address y, int act, double slope,
              int device, uintptr_t stream) {
  const Call call = parse_call(product, device, stream);
  const ConvGeometry g = parse_geometry(geometry);
  const Epilogue epilogue{pointer<const void>("bias", bias, false), parse_activation("act", act), slope};
  const auto* input = pointer<const void>("x", x, true);
  const auto* w = pointer<const void>("weight", weight, true);
  auto* output = pointer<void>("y", y, true);
  py::gil_scoped_release release;
  conv(call, g, input, w, output, epilogue);
}

void run_conv_transpose(int product, const py::tuple& geometry, Address x, Address weight, Address bias, Address y, int act,
                        double slope, Address prologue_y, int prologue_act, double prologue_slope, int device, uintptr_t stream) {
  const Call call = parse_call(product, device, stream);
  const ConvGeometry g = parse_geometry(geometry);
  const Epilogue epilogue{pointer<const void>("bias", bias, false), parse_activation("act", act), slope};
  const Prologue prologue{pointer<const void>("prologue_y", prologue_y, false), parse_activation("prologue_act", prologue_act),
                          prologue_slope};
  const auto* input = pointer<const void>("x", x, true);
  const auto* w = pointer<const void>("weight", weight, true);
  auto* output = pointer<void>("y", y, true);
  py::gil_scoped_release release;
  conv_transpose(call, g, input, w, output, epilogue, prologue);
}

int64_t scratch(int product, const py::tuple& geometry) {
  return conv_weight_grad_scratch(parse_call(product, 0, 0).product, parse_geometry(geometry));
}

void run_conv_weight_grad(int product, const py::tuple& geometry, Address few, Address many, Address partial, Address grad,
                          int device, uintptr_t stream) {
  const Call call = parse_call(product, device, stream);
  const ConvGeometry g = parse_geometry(geometry);
  const auto* narrow = pointer<const void>("few", few, true);
  const auto* wide = pointer<const void>("many", many, true);
  auto* sums = pointer<float>("partial", partial, true);
  auto* weight = pointer<void>("grad", grad, true);
  py::gil_scoped_release release;
  conv_weight_grad(call, g, narrow, wide, sums, weight);
}

void run_bce_with_logits(int product, int64_t n, Address x, Address target, double target_value, Address weight,
                         Address pos_weight, int reduction, Address loss, Address grad, Address partial, Address counter,
                         int device, uintptr_t stream) {
  const Call call = parse_call(product, device, stream);
  require(n >= 1, "n", std::to_string(n), "at least 1");
  require(reduction >= kReduceNone && reduction <= kReduceSum, "reduction", std::to_string(reduction),
          "0 none, 1 mean or 2 sum");
  const bool parted = reduction != kReduceNone && bce_blocks(n) > 1;
  const BceTensors tensors{n,
                           pointer<const void>("x", x, true),
                           pointer<const void>("target", target, false),
                           pointer<const void>("weight", weight, false),
                           pointer<const void>("pos_weight", pos_weight, false),
                           static_cast<float>(target_value),
                           reduction,
                           reduction == kReduceMean ? static_cast<float>(1.0 / static_cast<double>(n)) : 1.0f,
                           pointer<void>("loss", loss, true),
                           pointer<void>("grad", grad, true),
                           pointer<double>("partial", partial, parted),
                           pointer<uint32_t>("counter", counter, parted)};
  py::gil_scoped_release release;
  bce_with_logits(call, tensors);
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels of gan_fast over plain pointers; called through gan_fast.ops only.";
  m.def("build_info", &build_info, "How this module was built.");
  m.def("conv", &run_conv, py::arg("product"), py::arg("geometry"), py::arg("x"), py::arg("weight"), py::arg("bias"),
        py::arg("y"), py::arg("act"), py::arg("slope"), py::arg("device"), py::arg("stream"),
        "y = act(conv(x) + bias) to 1 to 4 output channels\n\n"
        "product: 0 bfloat16, 1 float16, 2 float32 by TF32, 3 float32. geometry: 16 ints as the CPU module takes them. x, weight\n"
        "(O, kh, kw, I) and y: dense channels-last; bias: O elements or 0. All launches are on the stream with this handle.");
  m.def("conv_transpose", &run_conv_transpose, py::arg("product"), py::arg("geometry"), py::arg("x"), py::arg("weight"),
        py::arg("bias"), py::arg("y"), py::arg("act"), py::arg("slope"), py::arg("prologue_y"), py::arg("prologue_act"),
        py::arg("prologue_slope"), py::arg("device"), py::arg("stream"),
        "y = act(conv_transpose(x * act'(prologue_y)) + bias) from 1 to 4 input channels\n\n"
        "As conv; weight: (I, kh, kw, O), prologue_y: as x, or 0.");
  m.def("conv_weight_grad_scratch", &scratch, py::arg("product"), py::arg("geometry"),
        "float32 elements of `partial` that conv_weight_grad takes.");
  m.def("conv_weight_grad", &run_conv_weight_grad, py::arg("product"), py::arg("geometry"), py::arg("few"), py::arg("many"),
        py::arg("partial"), py::arg("grad"), py::arg("device"), py::arg("stream"),
        "The weight gradient of conv and conv_transpose above, in two launches\n\n"
        "geometry: of the transposed convolution from the shape of `few` (1 to 4 channels) to that of `many`; grad: (few's\n"
        "channels, kh, kw, many's channels).");
  m.def("bce_blocks", &bce_blocks, py::arg("n"), "Elements of `partial` that bce_with_logits takes for n logits.");
  m.def("bce_with_logits", &run_bce_with_logits, py::arg("product"), py::arg("n"), py::arg("x"), py::arg("target"),
        py::arg("target_value"), py::arg("weight"), py::arg("pos_weight"), py::arg("reduction"), py::arg("loss"),
        py::arg("grad"), py::arg("partial"), py::arg("counter"), py::arg("device"), py::arg("stream"),
        "The loss and its derivative as the CPU module's bce_with_logits, in one launch\n\n"
        "partial: bce_blocks(n) float64, counter: one 32-bit zero that is zero again after the launch; both may be 0 where\n"
        "there is one block or no reduction.");
}

}  // namespace gan_fast::cuda
