// The launch of conv-inl.h on a device.
#include "conv-inl.h"
#include "device.h"
#include "kernels.h"
#include "launch.h"

namespace gan_fast::cuda {
namespace {

// Blocks that share a multiprocessor: two let loads and products overlap where 128 registers a thread are enough.
template <Product P, bool Aligned>
constexpr int kConvBlocks = P != kIeee && Aligned ? 2 : 1;

template <Product P, int Tiles, bool Aligned>
__global__ void __launch_bounds__(kThreads, kConvBlocks<P, Aligned>) conv_kernel(const ConvPlan plan, const ConvTensors tensors) {
  extern __shared__ __align__(16) unsigned char shared[];
  Device machine;
  conv_block<P, Tiles, Aligned>(machine, plan, tensors, static_cast<int>(blockIdx.x), shared);
}

}  // namespace

void conv(const Call& call, const ConvGeometry& geometry, const void* x, const void* weight, void* y, const Epilogue& epilogue) {
  const auto product = static_cast<Product>(call.product);
  const ConvPlan plan = plan_conv(geometry, product);
  const ConvTensors tensors{x, weight, epilogue.bias, y, epilogue.activation, static_cast<float>(epilogue.slope)};
  const int64_t blocks = geometry.batch * plan.tiles_y * plan.tiles_x;
  with_conv_kernel(plan, tensors, product, [&](auto p, auto tiles, auto aligned) {
    launch(conv_kernel<decltype(p)::value, decltype(tiles)::value, decltype(aligned)::value>, blocks,
           conv_shared(plan, decltype(tiles)::value), Place{call.device, call.stream}, plan, tensors);
  });
}

}  // namespace gan_fast::cuda
