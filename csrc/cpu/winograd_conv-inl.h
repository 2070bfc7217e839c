// Kernels of winograd_conv.h.
#include "common/activation.h"
#include "vec.h"
#include "vec_math.h"
#include "winograd_conv.h"
#include "winograd_transforms.h"

namespace gan_fast {
namespace GF_LEVEL {

// Of one piece, the channels of one block.
template <int M, class T>
GF_INLINE void transform_block(const InputTransform<T, T>& job, int64_t piece, int64_t block) {
  constexpr int lanes = VecOf<T>::lanes;
  for (int c = 0; c < kChannelBlock; c += lanes) {
    const int64_t at = block * job.out_block + piece * job.out_piece + c;
    input_points<M, T>(job.tile + block * job.in_block + job.pieces[piece] + c, job.row_stride,
                       [&](int point, Vec<T> value) __attribute__((always_inline)) {
                         if (job.out[point] != nullptr) store<T>(job.out[point] + at, value);
                       });
  }
}

template <int M, class T>
void input_transform(const InputTransform<T, T>& job) {
  for (int64_t block = 0; block < job.blocks; ++block) {
    for (int64_t piece = 0; piece < job.count; ++piece) transform_block<M, T>(job, piece, block);
  }
}

// A piece's blocks follow each other in the output.
template <int M, class T>
void input_pieces(const InputTransform<T, T>& job) {
  for (int64_t piece = 0; piece < job.count; ++piece) {
    for (int64_t block = 0; block < job.blocks; ++block) transform_block<M, T>(job, piece, block);
  }
}

template <int M, class T>
void weight_transform(const WeightTransform<T, T>& job) {
  constexpr int lanes = VecOf<T>::lanes;
  Vec<T> streamed[piece_points(M)][2];  // both vectors of a line leave together
  for (int v = 0; v < 2; ++v) {
    weight_points<M, T>(job.taps[0], v * lanes, [&](int point, Vec<T> value) __attribute__((always_inline)) {
      if (job.out[point] == nullptr) return;
      if (job.stream) {
        streamed[point][v] = value;
      } else {
        store<T>(job.out[point] + v * lanes, value);
      }
    });
  }
  if (!job.stream) return;
  for (int point = 0; point < piece_points(M); ++point) {
    if (job.out[point] == nullptr) continue;
    for (int v = 0; v < 2; ++v) store_stream<T>(job.out[point] + v * lanes, streamed[point][v]);
  }
}

// One vector of a piece's outputs: emit(pixel, place among m x m, vector) for those that are to be stored.
template <int M, int ACT, class S, class Emit>
GF_INLINE void output_piece(const OutputTransform<S>& job, int64_t i, int v, Vec<Arithmetic<S>> bias, const Emit& emit) {
  using T = Arithmetic<S>;
  constexpr int N = line_points(M), lanes = VecOf<T>::lanes;
  const PieceOutputs valid = job.valid[i];
  if (valid.end_row <= valid.first_row || valid.end_column <= valid.first_column) return;
  const int64_t at = (i * 2 + v) * lanes;
  Vec<T> by_row[M][N];
#pragma GCC unroll 6
  for (int x = 0; x < N; ++x) {
    Vec<T> m[N], line[M];
#pragma GCC unroll 6
    for (int y = 0; y < N; ++y) m[y] = job.sums[y * N + x] == nullptr ? Vec<T>{} : load<T>(job.sums[y * N + x] + at);
    Line<M>::template output<T>(m, line);
#pragma GCC unroll 4
    for (int y = 0; y < M; ++y) by_row[y][x] = line[y];
  }
  S* row = job.output + job.out[i] + v * lanes;
#pragma GCC unroll 4
  for (int y = 0; y < M; ++y, row += job.out_row) {
    if (y < valid.first_row || y >= valid.end_row) continue;
    Vec<T> line[M];
    Line<M>::template output<T>(by_row[y], line);
    S* pixel = row;
#pragma GCC unroll 4
    for (int x = 0; x < M; ++x, pixel += job.out_pixel) {
      if (x < valid.first_column || x >= valid.end_column) continue;
      emit(pixel, y * M + x, activate<ACT>(line[x] + bias, job.slope));
    }
  }
}

template <int M, int ACT, class S>
void output_transform_impl(const OutputTransform<S>& job) {
  using T = Arithmetic<S>;
  constexpr int lanes = VecOf<T>::lanes;
  const auto bias = [&](int v) { return job.bias == nullptr ? Vec<T>{} : load<T>(job.bias + v * lanes); };
  if (GF_VECTOR_BYTES == 32 && job.stream) {
    // Both vectors are one line, which should reach the memory as one.
    Vec<T> first[M * M] = {};
    for (int64_t i = 0; i < job.count; ++i) {
      output_piece<M, ACT>(job, i, 0, bias(0), [&](S*, int k, Vec<T> value) __attribute__((always_inline)) { first[k] = value; });
      output_piece<M, ACT>(job, i, 1, bias(1), [&](S* pixel, int k, Vec<T> value) __attribute__((always_inline)) {
        write_stream<S>(pixel - lanes, first[k]);
        write_stream<S>(pixel, value);
      });
    }
  } else {
    for (int v = 0; v < 2 && job.out_lanes > v * lanes; ++v) {
      const int64_t left = job.out_lanes - v * lanes;
      const Vec<T> its_bias = bias(v);
      for (int64_t i = 0; i < job.count; ++i) {
        output_piece<M, ACT>(job, i, v, its_bias, [&](S* pixel, int, Vec<T> value) __attribute__((always_inline)) {
          if (left >= lanes && job.stream) {
            write_stream<S>(pixel, value);
          } else if (left >= lanes) {
            write<S>(pixel, value);
          } else {
            write_first<S>(pixel, value, left);
          }
        });
      }
    }
  }
#if GF_VECTOR_BYTES > 16
  if (job.stream) _mm_sfence();
#endif
}

template <int M, class S>
void output_transform(const OutputTransform<S>& job) {
  switch (job.activation) {
    case kRelu:
      return output_transform_impl<M, kRelu>(job);
    case kLeakyRelu:
      return output_transform_impl<M, kLeakyRelu>(job);
    case kTanh:
      return output_transform_impl<M, kTanh>(job);
    case kSigmoid:
      return output_transform_impl<M, kSigmoid>(job);
    default:
      return output_transform_impl<M, kNone>(job);
  }
}

template <int M, class T>
void gradient_transform(const GradientTransform<T, T>& job) {
  constexpr int lanes = VecOf<T>::lanes;
  for (int64_t i = 0; i < job.count; ++i) {
    for (int v = 0; v < 2; ++v) {
      gradient_points<M, T>(job.tile + job.pieces[i] + v * lanes, job.row_stride,
                            [&](int point, Vec<T> value) __attribute__((always_inline)) {
                              store<T>(job.out[point] + (i * 2 + v) * lanes, value);
                            });
    }
  }
}

template <int M, class T>
void filter_transform(const FilterTransform<T>& job) {
  constexpr int N = line_points(M), lanes = VecOf<T>::lanes;
  for (int v = 0; v < 2; ++v) {
    Vec<T> by_row[3][N];
    for (int x = 0; x < N; ++x) {
      Vec<T> u[N], line[3];
      for (int y = 0; y < N; ++y) u[y] = job.sums[y * N + x] == nullptr ? Vec<T>{} : load<T>(job.sums[y * N + x] + v * lanes);
      Line<M>::template filter<T>(u, line);
      for (int y = 0; y < 3; ++y) by_row[y][x] = line[y];
    }
    for (int y = 0; y < 3; ++y) {
      Vec<T> line[3];
      Line<M>::template filter<T>(by_row[y], line);
      for (int x = 0; x < 3; ++x) store<T>(job.taps + ((y * 3 + x) * 2 + v) * lanes, line[x]);
    }
  }
}

template <int M, class S>
constexpr WinogradFunctions<S> functions_with() {
  using T = Arithmetic<S>;
  return {{input_transform<M, T>, input_pieces<M, T>, weight_transform<M, T>, gradient_transform<M, T>},
          output_transform<M, S>,
          filter_transform<M, T>};
}

extern const WinogradKernels winograd_kernels = {
#if GF_VECTOR_BYTES == 16
    {functions_with<2, float>(), functions_with<2, Bf16>(), functions_with<2, double>()},
#else
    {functions_with<2, float>(), functions_with<2, Bf16>(), {}},
#endif
    {functions_with<3, float>(), functions_with<3, Bf16>(), {}},
    {functions_with<4, float>(), functions_with<4, Bf16>(), {}},
};

}  // namespace GF_LEVEL
}  // namespace gan_fast
