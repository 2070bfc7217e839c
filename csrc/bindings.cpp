// gan_fast._C: argument structs in, kernels out. Together with bindings_*.cpp the only files that know pybind11.
#include <pybind11/pybind11.h>

#include "bindings.h"
#include "common/parallel.h"
#include "cpu/isa.h"
#include "cpu/matrix_kernels.h"
#include "cpu/pair_kernels.h"

namespace py = pybind11;

namespace {

py::list isa_level_names() {
  py::list names;
  for (gan_fast::Isa isa : gan_fast::isa_levels()) names.append(gan_fast::isa_name(isa));
  return names;
}

py::dict build_info() {
  py::dict info;
  info["version"] = GAN_FAST_VERSION;
  info["compiler"] = GAN_FAST_COMPILER;
  info["flags"] = GAN_FAST_FLAGS;
#ifdef GAN_FAST_THREADS
  info["openmp"] = true;
#else
  info["openmp"] = false;
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "CPU kernels of gan_fast over plain pointers; called through gan_fast.ops only.";
  m.def("isa_levels", &isa_level_names, "Instruction-set levels this CPU can run, best first.");
  m.def("isa", [] { return gan_fast::isa_name(gan_fast::current_isa()); }, "The level in use.");
  m.def("set_isa", &gan_fast::set_isa, py::arg("name"), "Test hook: run at another of isa_levels().");
  m.def("set_near_cache", &gan_fast::set_near_cache, py::arg("bytes"),
        "Test hook: choose as if a core had so many bytes of L2 to itself; -1: what the system tells.");
  m.def("set_emulated_pairs", &gan_fast::set_emulated_pairs, py::arg("on"),
        "Test hook: at the levels portable and avx512, bfloat16 kernels multiply pairs as those of avx512_bf16 do.");
  m.def("set_emulated_matrix", &gan_fast::set_emulated_matrix, py::arg("on"),
        "Test hook: where pairs are multiplied, do it by emulated matrix registers, as amx_bf16 does by its own.");
  m.def("build_info", &build_info, "How this module was built.");
  gan_fast::bind_convolution(m);
  gan_fast::bind_elementwise(m);
  gan_fast::bind_measuring(m);
  gan_fast::bind_normalization(m);
  gan_fast::bind_pool(m);
}
