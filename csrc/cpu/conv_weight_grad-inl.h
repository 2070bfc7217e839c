// Kernels of conv_weight_grad.h.
#include "common/activation.h"
#include "conv_weight_grad.h"
#include "outer_block.h"
#include "vec.h"
#include "vec_math.h"

namespace gan_fast {
namespace GF_LEVEL {

// Pixels whose blocks are packed together, of whole vectors and of parts: 2 and 8 were the fastest of 1 to 8 and of 4 to all on a Zen 4 with
// AVX2. Parts have a mask that pixels share.
constexpr int64_t kPixelsOfWhole = 2, kPixelsOfParts = 8;

// A vector of `left` or more valid channels (0 < left) of `count` neighbouring pixels.
template <int ACT, bool WHOLE, class S>
GF_INLINE void pack_vectors(const PackChannels<S, Arithmetic<S>>& job, const S* in, const S* y, int64_t count, int64_t left, bool fetches,
                            Arithmetic<S>* to) {
  using T = Arithmetic<S>;
  const auto channels_at = [&](const S* p) __attribute__((always_inline)) { return WHOLE ? read<S>(p) : read_first<S>(p, left); };
  const int64_t step = job.step * job.pixel_stride;
  for (int64_t j = 0; j < count; ++j, in += step, to += job.out_pixel) {
    if (fetches) prefetch(in + kPrefetchPixels * step, job.channels * static_cast<int64_t>(sizeof(S)));
    Vec<T> value = channels_at(in);
    if constexpr (ACT != kNone) value = act_backward<ACT>(value, channels_at(y + j * step), job.prologue_slope);
    store<T>(to, value);
  }
}

template <int ACT, class S>
void pack_channels_impl(const PackChannels<S, Arithmetic<S>>& job) {
  using T = Arithmetic<S>;
  constexpr int lanes = VecOf<T>::lanes;
  // The columns that exist.
  const auto first_at = [&](int64_t column) {
    const int64_t j = (column - job.first + job.step - 1) / job.step;
    return column <= job.first ? 0 : j < job.columns ? j : job.columns;
  };
  const int64_t begin = job.input == nullptr ? job.columns : first_at(0), end = job.input == nullptr ? job.columns : first_at(job.width);
  const auto zeros = [&](int64_t from, int64_t to) {
    for (int64_t j = from; j < to; ++j) {
      T* block = job.out + j * job.out_pixel;
      for (int64_t c = 0; c < job.channels; c += job.packed, block += job.out_block) {
        for (int64_t v = 0; v < job.packed; v += lanes) store<T>(block + v, Vec<T>{});
      }
    }
  };
  zeros(0, begin);
  const int64_t most = job.packed % lanes == 0 ? kPixelsOfWhole : kPixelsOfParts;
  for (int64_t j = begin; j < end; j += most) {
    const int64_t count = end - j < most ? end - j : most, offset = (job.first + j * job.step) * job.pixel_stride;
    T* block = job.out + j * job.out_pixel;
    for (int64_t c = 0; c < job.channels; c += job.packed, block += job.out_block) {
      const int64_t valid = job.channels - c < job.packed ? job.channels - c : job.packed;
      // What a pixel's last vector writes too far is overwritten by the next one's first vectors or with the next line, or lies in the slack.
      // In gaps between pixels it is zeros, as they are.
      for (int64_t v = (job.packed - 1) / lanes * lanes; v >= 0; v -= lanes) {
        const int64_t left = valid - v;
        if (left <= 0) {
          for (int64_t i = 0; i < count; ++i) store<T>(block + v + i * job.out_pixel, Vec<T>{});
          continue;
        }
        const S* const in = job.input + offset + c + v;
        const S* const y = ACT == kNone ? nullptr : job.prologue_y + offset + c + v;
        const bool fetches = c == 0 && v == 0;
        if (left >= lanes) {
          pack_vectors<ACT, true>(job, in, y, count, left, fetches, block + v);
        } else {
          pack_vectors<ACT, false>(job, in, y, count, left, fetches, block + v);
        }
      }
    }
  }
  zeros(end, job.columns);
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
