// Kernel text: the transforms of Winograd's operands (winograd_conv.h), a vector of channels at a time. What each point becomes is for
// emit(point, vector) to say.
#pragma once

#include "vec.h"
#include "winograd_conv.h"

namespace gan_fast {
namespace GF_LEVEL {

// The transforms of F(m, r) along one axis, in the letters of A. Lavin, S. Gray, arXiv 1509.09308.
template <int M>
struct Line;

// Points 0, 1, -1, infinity.
template <>
struct Line<2> {
  // B^T d
  template <class T>
  GF_INLINE void input(const Vec<T>* d, Vec<T>* out) {
    out[0] = d[0] - d[2];
    out[1] = d[1] + d[2];
    out[2] = d[2] - d[1];
    out[3] = d[1] - d[3];
  }

  // G g
  template <class T>
  GF_INLINE void weights(const Vec<T>* g, Vec<T>* out) {
    const Vec<T> even = (g[0] + g[2]) * splat<T>(T(0.5)), odd = g[1] * splat<T>(T(0.5));
    out[0] = g[0];
    out[1] = even + odd;
    out[2] = even - odd;
    out[3] = g[2];
  }

  // A^T m
  template <class T>
  GF_INLINE void output(const Vec<T>* m, Vec<T>* out) {
    out[0] = m[0] + m[1] + m[2];
    out[1] = m[1] - m[2] - m[3];
  }

  // A y
  template <class T>
  GF_INLINE void gradient(const Vec<T>* y, Vec<T>* out) {
    out[0] = y[0];
    out[1] = y[0] + y[1];
    out[2] = y[0] - y[1];
    out[3] = -y[1];
  }

  // G^T u
  template <class T>
  GF_INLINE void filter(const Vec<T>* u, Vec<T>* out) {
    const Vec<T> half = splat<T>(T(0.5));
    const Vec<T> even = (u[1] + u[2]) * half;
    out[0] = u[0] + even;
    out[1] = (u[1] - u[2]) * half;
    out[2] = even + u[3];
  }
};

// Points 0, 1, -1, infinity, and two taps.
template <>
struct Line<3> {
  template <class T>
  GF_INLINE void input(const Vec<T>* d, Vec<T>* out) {
    Line<2>::input<T>(d, out);
  }

  template <class T>
  GF_INLINE void weights(const Vec<T>* g, Vec<T>* out) {
    const Vec<T> half = splat<T>(T(0.5));
    out[0] = g[0];
    out[1] = (g[0] + g[1]) * half;
    out[2] = (g[0] - g[1]) * half;
    out[3] = g[1];
  }

  template <class T>
  GF_INLINE void output(const Vec<T>* m, Vec<T>* out) {
    const Vec<T> even = m[1] + m[2];
    out[0] = m[0] + even;
    out[1] = m[1] - m[2];
    out[2] = even - m[3];
  }

  template <class T>
  GF_INLINE void gradient(const Vec<T>* y, Vec<T>* out) {
    const Vec<T> even = y[0] + y[2];
    out[0] = y[0];
    out[1] = even + y[1];
    out[2] = even - y[1];
    out[3] = -y[2];
  }

  // The third tap is none.
  template <class T>
  GF_INLINE void filter(const Vec<T>* u, Vec<T>* out) {
    const Vec<T> half = splat<T>(T(0.5));
    out[0] = u[0] + (u[1] + u[2]) * half;
    out[1] = (u[1] - u[2]) * half + u[3];
    out[2] = Vec<T>{};
  }
};

// Points 0, a, -a, b, -b, infinity. The usual 1 and 2 would make twice the error; with these, all of B^T and A^T are short numbers.
template <>
struct Line<4> {
  static constexpr double a = 0.625, b = 1.5, aa = a * a, bb = b * b;
  static constexpr double scale_a = 1 / (2 * aa * (aa - bb)), scale_b = 1 / (2 * bb * (bb - aa));  // of G

  template <class T>
  GF_INLINE void input(const Vec<T>* d, Vec<T>* out) {
    const Vec<T> a2 = splat<T>(T(aa)), b2 = splat<T>(T(bb)), sum = splat<T>(T(aa + bb)), product = splat<T>(T(aa * bb));
    const Vec<T> even_a = d[4] - b2 * d[2], odd_a = (d[3] - b2 * d[1]) * splat<T>(T(a));
    const Vec<T> even_b = d[4] - a2 * d[2], odd_b = (d[3] - a2 * d[1]) * splat<T>(T(b));
    out[0] = product * d[0] - sum * d[2] + d[4];
    out[1] = even_a + odd_a;
    out[2] = even_a - odd_a;
    out[3] = even_b + odd_b;
    out[4] = even_b - odd_b;
    out[5] = product * d[1] - sum * d[3] + d[5];
  }

  template <class T>
  GF_INLINE void weights(const Vec<T>* g, Vec<T>* out) {
    const Vec<T> even_a = (g[0] + g[2] * splat<T>(T(aa))) * splat<T>(T(scale_a)), odd_a = g[1] * splat<T>(T(a * scale_a));
    const Vec<T> even_b = (g[0] + g[2] * splat<T>(T(bb))) * splat<T>(T(scale_b)), odd_b = g[1] * splat<T>(T(b * scale_b));
    out[0] = g[0] * splat<T>(T(1 / (aa * bb)));
    out[1] = even_a + odd_a;
    out[2] = even_a - odd_a;
    out[3] = even_b + odd_b;
    out[4] = even_b - odd_b;
    out[5] = g[2];
  }

  template <class T>
  GF_INLINE void output(const Vec<T>* m, Vec<T>* out) {
    const Vec<T> even_a = m[1] + m[2], odd_a = (m[1] - m[2]) * splat<T>(T(a));
    const Vec<T> even_b = m[3] + m[4], odd_b = (m[3] - m[4]) * splat<T>(T(b));
    out[0] = m[0] + even_a + even_b;
    out[1] = odd_a + odd_b;
    out[2] = even_a * splat<T>(T(aa)) + even_b * splat<T>(T(bb));
    out[3] = odd_a * splat<T>(T(aa)) + (odd_b * splat<T>(T(bb)) + m[5]);
  }

  template <class T>
  GF_INLINE void gradient(const Vec<T>* y, Vec<T>* out) {
    const Vec<T> a2 = splat<T>(T(aa)), b2 = splat<T>(T(bb));
    const Vec<T> even_a = y[0] + a2 * y[2], odd_a = (y[1] + a2 * y[3]) * splat<T>(T(a));
    const Vec<T> even_b = y[0] + b2 * y[2], odd_b = (y[1] + b2 * y[3]) * splat<T>(T(b));
    out[0] = y[0];
    out[1] = even_a + odd_a;
    out[2] = even_a - odd_a;
    out[3] = even_b + odd_b;
    out[4] = even_b - odd_b;
    out[5] = y[3];
  }

  template <class T>
  GF_INLINE void filter(const Vec<T>* u, Vec<T>* out) {
    const Vec<T> even_a = (u[1] + u[2]) * splat<T>(T(scale_a)), odd_a = (u[1] - u[2]) * splat<T>(T(a * scale_a));
    const Vec<T> even_b = (u[3] + u[4]) * splat<T>(T(scale_b)), odd_b = (u[3] - u[4]) * splat<T>(T(b * scale_b));
    out[0] = u[0] * splat<T>(T(1 / (aa * bb))) + (even_a + even_b);
    out[1] = odd_a + odd_b;
    out[2] = even_a * splat<T>(T(aa)) + (even_b * splat<T>(T(bb)) + u[5]);
  }
};

// B^T d B
template <int M, class T, class Emit>
GF_INLINE void input_points(const T* piece, int64_t row_stride, const Emit& emit) {
  constexpr int N = line_points(M);
  Vec<T> by_row[N][N];
#pragma GCC unroll 6
  for (int x = 0; x < N; ++x) {
    Vec<T> d[N], line[N];
#pragma GCC unroll 6
    for (int y = 0; y < N; ++y) d[y] = load<T>(piece + x * kChannelBlock + y * row_stride);
    Line<M>::template input<T>(d, line);
#pragma GCC unroll 6
    for (int y = 0; y < N; ++y) by_row[y][x] = line[y];
  }
#pragma GCC unroll 6
  for (int y = 0; y < N; ++y) {
    Vec<T> line[N];
    Line<M>::template input<T>(by_row[y], line);
#pragma GCC unroll 6
    for (int x = 0; x < N; ++x) emit(y * N + x, line[x]);
  }
}

// G g G^T of taps: [3][3] lines, null where there is no tap; the vector at `lane` of each.
template <int M, class T, class Emit>
GF_INLINE void weight_points(const T* const* taps, int lane, const Emit& emit) {
  constexpr int N = line_points(M);
  Vec<T> by_row[N][3];
  for (int x = 0; x < 3; ++x) {
    Vec<T> g[3], line[N];
    for (int y = 0; y < 3; ++y) g[y] = taps[y * 3 + x] == nullptr ? Vec<T>{} : load<T>(taps[y * 3 + x] + lane);
    Line<M>::template weights<T>(g, line);
    for (int y = 0; y < N; ++y) by_row[y][x] = line[y];
  }
  for (int y = 0; y < N; ++y) {
    Vec<T> line[N];
    Line<M>::template weights<T>(by_row[y], line);
    for (int x = 0; x < N; ++x) emit(y * N + x, line[x]);
  }
}

// A y A^T
template <int M, class T, class Emit>
GF_INLINE void gradient_points(const T* piece, int64_t row_stride, const Emit& emit) {
  constexpr int N = line_points(M), lanes = VecOf<T>::lanes;
  Vec<T> by_row[N][M];
#pragma GCC unroll 4
  for (int x = 0; x < M; ++x) {
    Vec<T> y[M], line[N];
#pragma GCC unroll 4
    for (int i = 0; i < M; ++i) y[i] = load<T>(piece + i * row_stride + x * 2 * lanes);
    Line<M>::template gradient<T>(y, line);
#pragma GCC unroll 6
    for (int i = 0; i < N; ++i) by_row[i][x] = line[i];
  }
#pragma GCC unroll 6
  for (int y = 0; y < N; ++y) {
    Vec<T> line[N];
    Line<M>::template gradient<T>(by_row[y], line);
#pragma GCC unroll 6
    for (int x = 0; x < N; ++x) emit(y * N + x, line[x]);
  }
}

}  // namespace GF_LEVEL
}  // namespace gan_fast
