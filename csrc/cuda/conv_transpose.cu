// The launch of conv_transpose-inl.h on a device.
#include "conv_transpose-inl.h"
#include "device.h"
#include "kernels.h"
#include "launch.h"

namespace gan_fast::cuda {
namespace {

template <Product P, int Tiles, bool Aligned>
__global__ void __launch_bounds__(kThreads, 2) transpose_kernel(const TransposePlan plan, const TransposeTensors tensors) {
  extern __shared__ __align__(16) unsigned char shared[];
  Device machine;
  transpose_block<P, Tiles, Aligned>(machine, plan, tensors, static_cast<int>(blockIdx.x), shared);
}

}  // namespace

void conv_transpose(const Call& call, const ConvGeometry& geometry, const void* x, const void* weight, void* y,
                    const Epilogue& epilogue, const Prologue& prologue) {
  const auto product = static_cast<Product>(call.product);
  const TransposePlan plan = plan_transpose(geometry, product);
  const TransposeTensors tensors{x, weight, epilogue.bias, prologue.y, y, epilogue.activation, prologue.activation,
                                 static_cast<float>(epilogue.slope), static_cast<float>(prologue.slope)};
  with_transpose_kernel(plan, tensors, product, [&](auto p, auto tiles, auto aligned) {
    launch(transpose_kernel<decltype(p)::value, decltype(tiles)::value, decltype(aligned)::value>,
           static_cast<int64_t>(plan.groups) * plan.walkers, transpose_shared(plan, product, decltype(tiles)::value),
           Place{call.device, call.stream}, plan, tensors);
  });
}

}  // namespace gan_fast::cuda
