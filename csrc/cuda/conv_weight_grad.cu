// The launches of conv_weight_grad-inl.h on a device.
#include "conv_weight_grad-inl.h"
#include "device.h"
#include "kernels.h"
#include "launch.h"

namespace gan_fast::cuda {
namespace {

template <Product P>
__global__ void __launch_bounds__(kThreads, 2) grad_kernel(const GradPlan plan, const GradTensors tensors) {
  __shared__ GradShared<P> shared;
  Device machine;
  grad_block<P>(machine, plan, tensors, static_cast<int>(blockIdx.x), shared);
}

template <Product P>
__global__ void __launch_bounds__(kThreads) add_parts_kernel(const GradPlan plan, const GradTensors tensors) {
  Device machine;
  add_parts_block<P>(machine, plan, tensors, static_cast<int>(blockIdx.x));
}

}  // namespace

int64_t conv_weight_grad_scratch(int product, const ConvGeometry& geometry) {
  const GradPlan plan = plan_grad(geometry, static_cast<Product>(product));
  return plan.parts * grad_elements(plan);
}

void conv_weight_grad(const Call& call, const ConvGeometry& geometry, const void* few, const void* many, float* partial, void* grad) {
  const auto product = static_cast<Product>(call.product);
  const GradPlan plan = plan_grad(geometry, product);
  const GradTensors tensors{few, many, partial, grad};
  const Place place{call.device, call.stream};
  with_product(product, [&](auto p) {
    constexpr Product P = decltype(p)::value;
    launch(grad_kernel<P>, int64_t{plan.parts} * plan.row_groups * plan.groups, 0, place, plan, tensors);
    launch(add_parts_kernel<P>, (grad_elements(plan) + kThreads - 1) / kThreads, 0, place, plan, tensors);
  });
}

}  // namespace gan_fast::cuda
