// The launch of bce_with_logits-inl.h on a device.
#include "bce_with_logits-inl.h"
#include "device.h"
#include "kernels.h"
#include "launch.h"

namespace gan_fast::cuda {
namespace {

template <Product P>
__global__ void __launch_bounds__(kThreads) bce_kernel(const BceTensors tensors) {
  __shared__ BceShared shared;
  Device machine;
  bce_block<P>(machine, tensors, static_cast<int>(blockIdx.x), static_cast<int>(gridDim.x), shared);
}

}  // namespace

void bce_with_logits(const Call& call, const BceTensors& tensors) {
  with_bce_kernel(static_cast<Product>(call.product), [&](auto p) {
    launch(bce_kernel<decltype(p)::value>, bce_blocks(tensors.n), 0, Place{call.device, call.stream}, tensors);
  });
}

}  // namespace gan_fast::cuda
