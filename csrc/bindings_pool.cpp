// Python's side of the block pool: DLPack capsules out, numbers in.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings.h"
#include "common/pool.h"

namespace py = pybind11;

namespace {

// A consumer (torch.from_dlpack) renames the capsule and owns the tensor from then on; one that nobody took frees it here.
void drop_capsule(PyObject* capsule) {
  if (PyCapsule_IsValid(capsule, gan_fast::dlpack::kCapsuleName) == 0) return;
  auto* managed = static_cast<gan_fast::dlpack::ManagedTensor*>(PyCapsule_GetPointer(capsule, gan_fast::dlpack::kCapsuleName));
  managed->deleter(managed);
}

py::object pool_empty(const std::vector<int64_t>& shape, const std::vector<int64_t>& strides, int dtype) {
  if (shape.size() != strides.size()) {
    throw std::invalid_argument("strides of length " + std::to_string(strides.size()) + ": expected one for each of the " +
                                std::to_string(shape.size()) + " entries of shape");
  }
  gan_fast::dlpack::ManagedTensor* managed =
      gan_fast::pool_tensor(shape.data(), strides.data(), static_cast<int>(shape.size()), dtype);
  PyObject* capsule = PyCapsule_New(managed, gan_fast::dlpack::kCapsuleName, drop_capsule);
  if (capsule == nullptr) {
    managed->deleter(managed);
    throw py::error_already_set();
  }
  return py::reinterpret_steal<py::object>(capsule);
}

py::dict stats() {
  const gan_fast::PoolStats s = gan_fast::pool_stats();
  py::dict d;
  d["hits"] = s.hits;
  d["misses"] = s.misses;
  d["live_bytes"] = s.live_bytes;
  d["live_blocks"] = s.live_blocks;
  d["cached_bytes"] = s.cached_bytes;
  d["cached_blocks"] = s.cached_blocks;
  d["limit_bytes"] = s.limit_bytes;
  return d;
}

}  // namespace

namespace gan_fast {

void bind_pool(py::module_& m) {
  m.def("pool_empty", &pool_empty, py::arg("shape"), py::arg("strides"), py::arg("dtype"),
        "pool_empty(shape, strides, dtype) -> \"dltensor\" capsule for torch.from_dlpack\n\n"
        "An uninitialised CPU tensor from the block pool. strides: in elements, >= 0. dtype: 0 float32, 1 float64,\n"
        "2 bfloat16. At most 8 dimensions. The block returns to the pool when the last tensor on it dies.");
  m.def("empty_cache", &pool_empty_cache, py::call_guard<py::gil_scoped_release>(),
        "Gives the pool's waiting blocks back to the system; blocks in use stay.");
  m.def("pool_stats", &stats,
        "hits, misses (counts), live_bytes, live_blocks (inside tensors and running kernels), cached_bytes, cached_blocks (waiting), limit_bytes.");
  m.def("pool_set_limit", &pool_set_limit, py::arg("nbytes"), py::call_guard<py::gil_scoped_release>(),
        "Bounds cached_bytes, 0 turns reuse off; returns the old bound. The default comes from GAN_FAST_POOL_MB.");
  m.def("pool_set_poison", &pool_set_poison, py::arg("on"),
        "Test hook: fill blocks with NaN before they are handed out; returns the old setting.");
}

}  // namespace gan_fast
