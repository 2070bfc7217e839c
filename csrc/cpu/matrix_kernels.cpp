#include "matrix_kernels.h"

#include <atomic>

#include "isa.h"
#include "pair_kernels.h"

namespace gan_fast {

#ifdef GAN_FAST_AMX
namespace amx_bf16 { extern const MatrixKernels matrix_kernels_table; }
#endif
#ifdef GAN_FAST_X86
namespace avx512 { extern const MatrixKernels matrix_kernels_table; }
#endif
namespace portable { extern const MatrixKernels matrix_kernels_table; }

namespace {

std::atomic<bool> emulated{false};

}  // namespace

const MatrixKernels* matrix_kernels() {
#ifdef GAN_FAST_AMX
  if (current_isa() == Isa::kAmxBf16) return &amx_bf16::matrix_kernels_table;
#endif
  if (!emulated.load(std::memory_order_relaxed) || pair_kernels() == nullptr) return nullptr;
#ifdef GAN_FAST_X86
  if (current_isa() != Isa::kPortable) return &avx512::matrix_kernels_table;
#endif
  return &portable::matrix_kernels_table;
}

void set_emulated_matrix(bool on) { emulated.store(on, std::memory_order_relaxed); }

}  // namespace gan_fast
