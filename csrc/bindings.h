// Each bindings_*.cpp adds one family of functions to the module.
#pragma once

#include <pybind11/pybind11.h>

namespace gan_fast {

void bind_convolution(pybind11::module_& m);
void bind_elementwise(pybind11::module_& m);
void bind_measuring(pybind11::module_& m);
void bind_normalization(pybind11::module_& m);
void bind_pool(pybind11::module_& m);

}  // namespace gan_fast
