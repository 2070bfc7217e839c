// Kernels of conv_weight_grad.h.
#include "common/activation.h"
#include "conv_weight_grad.h"
#include "vec.h"
#include "vec_math.h"

namespace gan_fast {
namespace GF_LEVEL {

#define GF_INLINE static inline __attribute__((always_inline))

#if GF_VECTOR_BYTES == 64
constexpr int kRows = 14;
#else
constexpr int kRows = 6;
#endif

template <int M, int NV, class T>
void outer_rows(const OuterJob<T>& job) {
  constexpr int lanes = VecOf<T>::lanes;
  Vec<T> acc[M][NV];
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) acc[i][v] = Vec<T>{};
  }
  for (int64_t image = 0; image < job.images; ++image) {
    for (int64_t line = 0; line < job.lines; ++line) {
      const T* a = job.a + image * job.a_image + line * job.a_line;
      const T* b = job.b + image * job.b_image + line * job.b_line;
      for (int64_t k = 0; k < job.length; ++k, a += job.a_pixel, b += 2 * lanes) {
        Vec<T> right[NV];
#pragma GCC unroll 2
        for (int v = 0; v < NV; ++v) right[v] = load<T>(b + v * lanes);
#pragma GCC unroll 16
        for (int i = 0; i < M; ++i) {
          const Vec<T> left = splat<T>(a[i]);
#pragma GCC unroll 2
          for (int v = 0; v < NV; ++v) acc[i][v] += left * right[v];
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) {
      T* sum = job.sums + (i * 2 + v) * lanes;
      store<T>(sum, load<T>(sum) + acc[i][v]);
    }
  }
}

template <int M, class T>
void outer_width(const OuterJob<T>& job) {
  if (job.narrow) {
    outer_rows<M, 1>(job);
  } else {
    outer_rows<M, 2>(job);
  }
}

template <class T>
void outer(const OuterJob<T>& job) {
  switch (job.rows) {
    case 1: return outer_width<1>(job);
    case 2: return outer_width<2>(job);
    case 3: return outer_width<3>(job);
    case 4: return outer_width<4>(job);
    case 5: return outer_width<5>(job);
    case 6: return outer_width<6>(job);
#if GF_VECTOR_BYTES == 64
    case 7: return outer_width<7>(job);
    case 8: return outer_width<8>(job);
    case 9: return outer_width<9>(job);
    case 10: return outer_width<10>(job);
    case 11: return outer_width<11>(job);
    case 12: return outer_width<12>(job);
    case 13: return outer_width<13>(job);
    case 14: return outer_width<14>(job);
#endif
  }
}

template <int ACT, class T>
void pack_channels_impl(const PackChannels<T>& job) {
  constexpr int lanes = VecOf<T>::lanes;
  for (int64_t j = 0; j < job.columns; ++j) {
    const int64_t column = job.first + j * job.step;
    const bool inside = job.input != nullptr && column >= 0 && column < job.width;
    const T* in = inside ? job.input + column * job.pixel_stride : nullptr;
    const T* y = ACT == kNone || !inside ? nullptr : job.prologue_y + column * job.pixel_stride;
    if (inside) {
      prefetch(in + kPrefetchPixels * job.step * job.pixel_stride, job.channels * static_cast<int64_t>(sizeof(T)));
    }
    T* block = job.out + j * job.out_pixel;
    for (int64_t c = 0; c < job.channels; c += job.packed, block += job.out_block) {
      const int64_t valid = inside ? (job.channels - c < job.packed ? job.channels - c : job.packed) : 0;
      // Pixels are written in order, so what a whole vector writes too far is overwritten by the next pixel.
      for (int64_t v = 0; v < job.packed; v += lanes) {
        const int64_t left = valid - v;
        Vec<T> value{};
        if (left > 0) {
          value = left >= lanes ? load<T>(in + c + v) : load_first<T>(in + c + v, left);
          if constexpr (ACT != kNone) {
            value = act_backward<ACT>(value, left >= lanes ? load<T>(y + c + v) : load_first<T>(y + c + v, left),
                                      job.prologue_slope);
          }
        }
        store<T>(block + v, value);
      }
    }
  }
}

template <class T>
void pack_channels(const PackChannels<T>& job) {
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

template <class T>
void fold_line(const FoldLine<T>& job) {
  constexpr int lanes = VecOf<T>::lanes;
  const int64_t piece = job.taps_x * job.channels;
  for (int64_t p = 0; p < job.pixels; ++p) {
    T* to = job.to + p * job.to_pixel;
    for (int64_t ky = 0; ky < job.taps_y; ++ky, to += piece) {
      const T* from = job.from + p * job.from_pixel + ky * job.from_tap_y;
      if (job.from_tap_x == job.channels) {
        for (int64_t i = 0; i < piece; i += lanes) store<T>(to + i, load<T>(from + i));
      } else {
        for (int64_t kx = 0; kx < job.taps_x; ++kx) {
          for (int64_t c = 0; c < job.channels; ++c) to[kx * job.channels + c] = from[kx * job.from_tap_x + c];
        }
      }
    }
  }
}

// Sums in two levels, kShortChain pixels and then their sums: one long chain would lose ten times as much as torch's does.
constexpr int64_t kShortChain = 32;

// One vector of channels, or `count` lanes of one.
template <int ACT, int NV, bool WHOLE, class T>
GF_INLINE void column_sums_of(const ColumnSumJob<T>& job, int64_t c, int64_t count) {
  constexpr int lanes = VecOf<T>::lanes;
  const auto read = [&](const T* p) __attribute__((always_inline)) { return WHOLE ? load<T>(p) : load_first<T>(p, count); };
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
        Vec<T> value = read(job.grad + at + v * lanes);
        if constexpr (ACT != kNone) value = act_backward<ACT>(value, read(job.prologue_y + at + v * lanes), job.prologue_slope);
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

template <int ACT, class T>
void column_sums_impl(const ColumnSumJob<T>& job) {
  constexpr int lanes = VecOf<T>::lanes;
  int64_t c = 0;
  for (; c + 4 * lanes <= job.channels; c += 4 * lanes) column_sums_of<ACT, 4, true>(job, c, lanes);
  for (; c + lanes <= job.channels; c += lanes) column_sums_of<ACT, 1, true>(job, c, lanes);
  if (c < job.channels) column_sums_of<ACT, 1, false>(job, c, job.channels - c);
}

template <class T>
void column_sums(const ColumnSumJob<T>& job) {
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
#if GF_VECTOR_BYTES == 16
    {outer<double>, pack_channels<double>, fold_line<double>, column_sums<double>},
#else
    {nullptr, nullptr, nullptr, nullptr},
#endif
};

}  // namespace GF_LEVEL
}  // namespace gan_fast
