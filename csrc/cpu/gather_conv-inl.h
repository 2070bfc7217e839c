// Kernels of gather_conv.h.
#include "common/activation.h"
#include "few_block.h"
#include "gather_conv.h"
#include "gemm_block.h"
#include "pack_line.h"
#include "vec.h"
#include "vec_math.h"

namespace gan_fast {
namespace GF_LEVEL {

// ---- packing ------------------------------------------------------------------------------------------------------------------

template <int ACT, class S>
void pack_row_impl(const PackRow<S, Arithmetic<S>>& row) {
  using T = Arithmetic<S>;
  constexpr int lanes = VecOf<T>::lanes;
  const int64_t whole = row.channels / kChannelBlock;
  const int64_t rest = row.channels % kChannelBlock;
  for (int64_t j = 0; j < row.columns; ++j) {
    const int64_t column = row.first + j * row.step;
    T* out = row.tile + j * row.pixel;
    if (row.input == nullptr || column < 0 || column >= row.width) {
      for (int64_t b = 0; b < whole + (rest != 0); ++b, out += row.block_stride) {
        for (int v = 0; v < kChannelBlock; v += lanes) store<T>(out + v, Vec<T>{});
      }
      continue;
    }
    const S* in = row.input + column * row.pixel_stride;
    prefetch(in + kPrefetchPixels * row.step * row.pixel_stride, row.channels * static_cast<int64_t>(sizeof(S)));
    const S* y = ACT == kNone ? nullptr : row.prologue_y + column * row.pixel_stride;
    for (int64_t b = 0; b < whole; ++b, out += row.block_stride) {
      for (int v = 0; v < kChannelBlock; v += lanes) {
        Vec<T> value = read<S>(in + b * kChannelBlock + v);
        if constexpr (ACT != kNone) value = act_backward<ACT>(value, read<S>(y + b * kChannelBlock + v), row.prologue_slope);
        store<T>(out + v, value);
      }
    }
    for (int64_t v = 0; rest != 0 && v < kChannelBlock; v += lanes) {
      const int64_t left = rest - v;
      const int64_t c = whole * kChannelBlock + v;
      Vec<T> value{};
      if (left > 0) {
        value = left >= lanes ? read<S>(in + c) : read_first<S>(in + c, left);
        if constexpr (ACT != kNone) {
          value = act_backward<ACT>(value, left >= lanes ? read<S>(y + c) : read_first<S>(y + c, left), row.prologue_slope);
        }
      }
      store<T>(out + v, value);
    }
  }
}

template <class S>
void pack_row(const PackRow<S, Arithmetic<S>>& row) {
  switch (row.prologue_y == nullptr ? kNone : row.prologue_activation) {
    case kRelu:
      return pack_row_impl<kRelu>(row);
    case kLeakyRelu:
      return pack_row_impl<kLeakyRelu>(row);
    case kTanh:
      return pack_row_impl<kTanh>(row);
    case kSigmoid:
      return pack_row_impl<kSigmoid>(row);
    default:
      return pack_row_impl<kNone>(row);
  }
}

extern const GatherKernels gather_kernels = {
    kPixels,
    kFewPixels,
    GF_VECTOR_BYTES,
    {pack_row<float>, pack_line<float, float>, gemm<float, float>, few<float, float>},
    {pack_row<Bf16>, pack_line<Bf16, float>, gemm<Bf16, float>, few<Bf16, float>},
#if GF_VECTOR_BYTES == 16
    {pack_row<double>, pack_line<double, double>, gemm<double, double>, few<double, double>},
#else
    {nullptr, nullptr, nullptr, nullptr},
#endif
};

}  // namespace GF_LEVEL
}  // namespace gan_fast
