// Launches on the caller's device and stream. Every CUDA call's result becomes an exception that names the call.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "products.h"

namespace gan_fast::cuda {

// Where to run: a device's number, and the stream's handle as an integer.
struct Place {
  int device;
  uintptr_t stream;
};

inline void check(cudaError_t result, const char* call) {
  if (result == cudaSuccess) return;
  throw std::runtime_error(std::string(call) + ": " + cudaGetErrorString(result) + " (" + cudaGetErrorName(result) + ")");
}

// Nothing here allocates or waits, so that a stream may be capturing a graph.
template <class... Parameters>
void launch(void (*kernel)(Parameters...), int64_t blocks, size_t shared, const Place& place, Parameters... parameters) {
  constexpr size_t without_asking = 48 * 1024;
  const void* function = reinterpret_cast<const void*>(kernel);
  check(cudaSetDevice(place.device), "cudaSetDevice");
  if (shared > without_asking) {
    check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
          "cudaFuncSetAttribute(cudaFuncAttributeMaxDynamicSharedMemorySize)");
  }
  void* arguments[] = {&parameters...};
  check(cudaLaunchKernel(function, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), arguments, shared,
                         reinterpret_cast<cudaStream_t>(place.stream)),
        "cudaLaunchKernel");
}

}  // namespace gan_fast::cuda
