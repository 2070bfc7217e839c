// Kernels of winograd_conv.h.
#include "common/activation.h"
#include "vec.h"
#include "vec_math.h"
#include "winograd_conv.h"
#include "winograd_transforms.h"

namespace gan_fast {
namespace GF_LEVEL {

template <class T>
void input_transform(const InputTransform<T, T>& job) {
  constexpr int lanes = VecOf<T>::lanes;
  for (int64_t b = 0; b < job.blocks; ++b) {
    for (int64_t i = 0; i < job.count; ++i) {
      for (int c = 0; c < kChannelBlock; c += lanes) {
        const int64_t at = b * job.out_block + i * job.out_piece + c;
        input_points<T>(job.tile + b * job.in_block + job.pieces[i] + c, job.row_stride,
                        [&](int point, Vec<T> value) __attribute__((always_inline)) {
                          if (job.out[point] != nullptr) store<T>(job.out[point] + at, value);
                        });
      }
    }
  }
}

template <class T>
void weight_transform(const WeightTransform<T, T>& job) {
  constexpr int lanes = VecOf<T>::lanes;
  for (int v = 0; v < 2; ++v) {
    weight_points<T>(job.taps[0], v * lanes, [&](int point, Vec<T> value) __attribute__((always_inline)) {
      if (job.out[point] != nullptr) store<T>(job.out[point] + v * lanes, value);
    });
  }
}

template <int ACT, class S>
void output_transform_impl(const OutputTransform<S>& job) {
  using T = Arithmetic<S>;
  constexpr int lanes = VecOf<T>::lanes;
  for (int v = 0; v < 2 && job.out_lanes > v * lanes; ++v) {
    const int64_t left = job.out_lanes - v * lanes;
    const Vec<T> bias = job.bias == nullptr ? Vec<T>{} : load<T>(job.bias + v * lanes);
    for (int64_t i = 0; i < job.count; ++i) {
      const int64_t at = (i * 2 + v) * lanes;
      Vec<T> upper[4], lower[4];
#pragma GCC unroll 4
      for (int x = 0; x < 4; ++x) {
        Vec<T> m[4];
#pragma GCC unroll 4
        for (int y = 0; y < 4; ++y) m[y] = job.sums[y * 4 + x] == nullptr ? Vec<T>{} : load<T>(job.sums[y * 4 + x] + at);
        upper[x] = m[0] + m[1] + m[2];
        lower[x] = m[1] - m[2] - m[3];
      }
      if (job.valid[i] & kNoOutput) continue;
      const Vec<T> result[2][2] = {{upper[0] + upper[1] + upper[2], upper[1] - upper[2] - upper[3]},
                                   {lower[0] + lower[1] + lower[2], lower[1] - lower[2] - lower[3]}};
      S* out = job.output + job.out[i] + v * lanes;
      for (int y = 0; y < (job.valid[i] & kSecondRow ? 2 : 1); ++y) {
        for (int x = 0; x < (job.valid[i] & kSecondColumn ? 2 : 1); ++x) {
          const Vec<T> value = activate<ACT>(result[y][x] + bias, job.slope);
          S* pixel = out + y * job.out_row + x * job.out_pixel;
          if (left >= lanes && job.stream) {
            write_stream<S>(pixel, value);
          } else if (left >= lanes) {
            write<S>(pixel, value);
          } else {
            write_first<S>(pixel, value, left);
          }
        }
      }
    }
  }
#if GF_VECTOR_BYTES > 16
  if (job.stream) _mm_sfence();
#endif
}

template <class S>
void output_transform(const OutputTransform<S>& job) {
  switch (job.activation) {
    case kRelu:
      return output_transform_impl<kRelu>(job);
    case kLeakyRelu:
      return output_transform_impl<kLeakyRelu>(job);
    case kTanh:
      return output_transform_impl<kTanh>(job);
    case kSigmoid:
      return output_transform_impl<kSigmoid>(job);
    default:
      return output_transform_impl<kNone>(job);
  }
}

template <class T>
void gradient_transform(const GradientTransform<T, T>& job) {
  constexpr int lanes = VecOf<T>::lanes;
  for (int64_t i = 0; i < job.count; ++i) {
    for (int v = 0; v < 2; ++v) {
      gradient_points<T>(job.tile + job.pieces[i] + v * lanes, job.row_stride,
                         [&](int point, Vec<T> value) __attribute__((always_inline)) {
                           store<T>(job.out[point] + (i * 2 + v) * lanes, value);
                         });
    }
  }
}

// G^T u for one line of four.
template <class T>
GF_INLINE void filter_four(const Vec<T>* u, Vec<T>* out) {
  const Vec<T> half = splat<T>(T(0.5));
  const Vec<T> even = (u[1] + u[2]) * half;
  out[0] = u[0] + even;
  out[1] = (u[1] - u[2]) * half;
  out[2] = even + u[3];
}

template <class T>
void filter_transform(const FilterTransform<T>& job) {
  constexpr int lanes = VecOf<T>::lanes;
  for (int v = 0; v < 2; ++v) {
    Vec<T> by_row[3][4];
    for (int x = 0; x < 4; ++x) {
      Vec<T> u[4], line[3];
      for (int y = 0; y < 4; ++y) u[y] = job.sums[y * 4 + x] == nullptr ? Vec<T>{} : load<T>(job.sums[y * 4 + x] + v * lanes);
      filter_four<T>(u, line);
      for (int y = 0; y < 3; ++y) by_row[y][x] = line[y];
    }
    for (int y = 0; y < 3; ++y) {
      Vec<T> line[3];
      filter_four<T>(by_row[y], line);
      for (int x = 0; x < 3; ++x) store<T>(job.taps + ((y * 3 + x) * 2 + v) * lanes, line[x]);
    }
  }
}

extern const WinogradKernels winograd_kernels = {
    {{input_transform<float>, input_transform<float>, weight_transform<float>, gradient_transform<float>},
     output_transform<float>,
     filter_transform<float>},
    {{input_transform<float>, input_transform<float>, weight_transform<float>, gradient_transform<float>},
     output_transform<Bf16>,
     filter_transform<float>},
#if GF_VECTOR_BYTES == 16
    {{input_transform<double>, input_transform<double>, weight_transform<double>, gradient_transform<double>},
     output_transform<double>,
     filter_transform<double>},
#else
    {{nullptr, nullptr, nullptr, nullptr}, nullptr, nullptr},
#endif
};

}  // namespace GF_LEVEL
}  // namespace gan_fast
