// Python's side of what measures the machine and looks at the drivers' plans; benchmarks and tests call it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>

#include "bindings.h"
#include "common/plan.h"
#include "cpu/fma_peak.h"

namespace py = pybind11;

namespace {

double checked_fma_peak(int64_t rounds, int threads) {
  if (rounds < 1 || threads < 1) {
    throw std::invalid_argument("rounds and threads must be positive, got " + std::to_string(rounds) + " and " + std::to_string(threads));
  }
  return gan_fast::fma_peak(rounds, threads);
}

py::dict plan_as_dict() {
  const gan_fast::Plan plan = gan_fast::end_plan();
  py::dict d;
  d["loops"] = plan.loops;
  d["shared_weights"] = plan.scratch[gan_fast::kSharedWeights];
  d["partial_sums"] = plan.scratch[gan_fast::kPartialSums];
  d["winograd"] = plan.winograd;
  d["parts"] = plan.parts;
  return d;
}

}  // namespace

namespace gan_fast {

void bind_measuring(py::module_& m) {
  m.def("fma_peak", &checked_fma_peak, py::arg("rounds"), py::arg("threads"), py::call_guard<py::gil_scoped_release>(),
        "Runs so many rounds of multiply-adds on each thread; returns the floating-point operations done.");
  m.def("begin_plan", &begin_plan,
        "Test hook: from now on this thread's kernel calls only note how they would split their work; outputs are arbitrary.");
  m.def("end_plan", &plan_as_dict,
        "Ends begin_plan. loops: tasks of each parallel loop; shared_weights, partial_sums: bytes that all threads share; winograd: "
        "outputs of a piece along each axis, 0 if the call is direct; parts: of an element on matrix registers, 0 if it is not there.");
}

}  // namespace gan_fast
