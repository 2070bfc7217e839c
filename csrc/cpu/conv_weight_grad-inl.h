// Kernels of conv_weight_grad.h.
#include "common/activation.h"
#include "conv_weight_grad.h"
#include "outer_block.h"
#include "vec.h"
#include "vec_math.h"

namespace gan_fast {
namespace GF_LEVEL {

template <int ACT, class S>
void pack_channels_impl(const PackChannels<S, Arithmetic<S>>& job) {
  using T = Arithmetic<S>;
  constexpr int lanes = VecOf<T>::lanes;
  for (int64_t j = 0; j < job.columns; ++j) {
    const int64_t column = job.first + j * job.step;
    const bool inside = job.input != nullptr && column >= 0 && column < job.width;
    const S* in = inside ? job.input + column * job.pixel_stride : nullptr;
    const S* y = ACT == kNone || !inside ? nullptr : job.prologue_y + column * job.pixel_stride;
    if (inside) {
      prefetch(in + kPrefetchPixels * job.step * job.pixel_stride, job.channels * static_cast<int64_t>(sizeof(S)));
    }
    T* block = job.out + j * job.out_pixel;
    for (int64_t c = 0; c < job.channels; c += job.packed, block += job.out_block) {
      const int64_t valid = inside ? (job.channels - c < job.packed ? job.channels - c : job.packed) : 0;
      // Pixels are written in order, so what a whole vector writes too far is overwritten by the next pixel.
      for (int64_t v = 0; v < job.packed; v += lanes) {
        const int64_t left = valid - v;
        Vec<T> value{};
        if (left > 0) {
          value = left >= lanes ? read<S>(in + c + v) : read_first<S>(in + c + v, left);
          if constexpr (ACT != kNone) {
            value = act_backward<ACT>(value, left >= lanes ? read<S>(y + c + v) : read_first<S>(y + c + v, left),
                                      job.prologue_slope);
          }
        }
        store<T>(block + v, value);
      }
    }
  }
}

template <class S>
void pack_channels(const PackChannels<S, Arithmetic<S>>& job) {
  switch (job.prologue_y == nullptr ? kNone : job.prologue_activation) {
    case kRelu:
      return pack_channels_impl<kRelu>(job);
    case kLeakyRelu:
      return pack_channels_impl<kLeakyRelu>(job);
    case kTanh:
      return pack_channels_impl<kTanh>(job);
    case kSigmoid:
      return pack_channels_impl<kSigmoid>(job);
    default:
      return pack_channels_impl<kNone>(job);
  }
}

// Sums in two levels, kShortChain pixels and then their sums: one long chain would lose ten times as much as torch's does.
constexpr int64_t kShortChain = 32;

// One vector of channels, or `count` lanes of one.
template <int ACT, int NV, bool WHOLE, class S>
GF_INLINE void column_sums_of(const ColumnSumJob<S>& job, int64_t c, int64_t count) {
  using T = Arithmetic<S>;
  constexpr int lanes = VecOf<T>::lanes;
  const auto channels_at = [&](const S* p) __attribute__((always_inline)) { return WHOLE ? read<S>(p) : read_first<S>(p, count); };
  Vec<T> total[NV];
  for (int v = 0; v < NV; ++v) total[v] = Vec<T>{};
  for (int64_t first = 0; first < job.pixels; first += kShortChain) {
    const int64_t last = first + kShortChain < job.pixels ? first + kShortChain : job.pixels;
    Vec<T> sum[NV];
    for (int v = 0; v < NV; ++v) sum[v] = Vec<T>{};
    for (int64_t p = first; p < last; ++p) {
      const int64_t at = p * job.channels + c;
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        Vec<T> value = channels_at(job.grad + at + v * lanes);
        if constexpr (ACT != kNone) value = act_backward<ACT>(value, channels_at(job.prologue_y + at + v * lanes), job.prologue_slope);
        sum[v] += value;
      }
    }
    for (int v = 0; v < NV; ++v) total[v] += sum[v];
  }
  for (int v = 0; v < NV; ++v) {
    if (WHOLE) {
      store<T>(job.sums + c + v * lanes, total[v]);
    } else {
      store_first<T>(job.sums + c, total[v], count);
    }
  }
}

template <int ACT, class S>
void column_sums_impl(const ColumnSumJob<S>& job) {
  constexpr int lanes = VecOf<Arithmetic<S>>::lanes;
  int64_t c = 0;
  for (; c + 4 * lanes <= job.channels; c += 4 * lanes) column_sums_of<ACT, 4, true>(job, c, lanes);
  for (; c + lanes <= job.channels; c += lanes) column_sums_of<ACT, 1, true>(job, c, lanes);
  if (c < job.channels) column_sums_of<ACT, 1, false>(job, c, job.channels - c);
}

template <class S>
void column_sums(const ColumnSumJob<S>& job) {
  switch (job.prologue_y == nullptr ? kNone : job.prologue_activation) {
    case kRelu:
      return column_sums_impl<kRelu>(job);
    case kLeakyRelu:
      return column_sums_impl<kLeakyRelu>(job);
    case kTanh:
      return column_sums_impl<kTanh>(job);
    case kSigmoid:
      return column_sums_impl<kSigmoid>(job);
    default:
      return column_sums_impl<kNone>(job);
  }
}

extern const WeightGradKernels weight_grad_kernels = {
    kRows,
    GF_VECTOR_BYTES,
    {outer<float>, pack_channels<float>, fold_line<float>, column_sums<float>},
    {outer<float>, pack_channels<Bf16>, fold_line<float>, column_sums<Bf16>},
#if GF_VECTOR_BYTES == 16
    {outer<double>, pack_channels<double>, fold_line<double>, column_sums<double>},
#else
    {nullptr, nullptr, nullptr, nullptr},
#endif
};

}  // namespace GF_LEVEL
}  // namespace gan_fast
