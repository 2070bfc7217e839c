// Checks of plain arguments that several bindings_*.cpp make; each throws std::invalid_argument.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "common/activation.h"

namespace gan_fast {

using Address = std::uintptr_t;  // tensor.data_ptr(); 0 where an optional tensor is missing

inline void require(bool right, const char* name, const std::string& value, const char* expected) {
  if (!right) throw std::invalid_argument(std::string(name) + "=" + value + ": expected " + expected);
}

inline void check_dtype(int dtype) {
  require(dtype == 0 || dtype == 1, "dtype", std::to_string(dtype), "0 (float32) or 1 (float64)");
}

// Of the kernels that take bfloat16 too.
inline void check_storage(int dtype) {
  require(dtype >= 0 && dtype <= 2, "dtype", std::to_string(dtype), "0 (float32), 1 (float64) or 2 (bfloat16)");
}

inline void check_activation(int act) {
  require(act >= kNone && act <= kSigmoid, "act", std::to_string(act),
          "0 none, 1 relu, 2 leaky_relu, 3 tanh or 4 sigmoid");
}

inline void check_threads(int threads) { require(threads >= 1, "threads", std::to_string(threads), "at least 1"); }

inline void check_size(const char* name, int64_t n) { require(n >= 0, name, std::to_string(n), "a size >= 0"); }

template <class T>
T* pointer(const char* name, Address address, bool needed) {
  require(address != 0 || !needed, name, "0", "the address of a tensor");
  return reinterpret_cast<T*>(address);
}

}  // namespace gan_fast
