#include "pair_kernels.h"

#include <atomic>

namespace gan_fast {

#ifdef GAN_FAST_X86
namespace avx512_bf16 { extern const PairKernels pair_kernels; }
namespace avx512 { extern const PairKernels pair_kernels; }
#endif
namespace portable { extern const PairKernels pair_kernels; }

namespace {

std::atomic<bool> emulated{false};

}  // namespace

const PairKernels* pair_kernels() {
  const Isa isa = current_isa();
  const bool allowed = emulated.load(std::memory_order_relaxed);
#ifdef GAN_FAST_X86
  if (isa == Isa::kAvx512Bf16 || isa == Isa::kAmxBf16) return &avx512_bf16::pair_kernels;
  if (isa == Isa::kAvx512 && allowed) return &avx512::pair_kernels;
#endif
  return isa == Isa::kPortable && allowed ? &portable::pair_kernels : nullptr;
}

void set_emulated_pairs(bool on) { emulated.store(on, std::memory_order_relaxed); }

}  // namespace gan_fast
