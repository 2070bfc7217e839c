// Kernel text: the transforms of Winograd's operands (winograd_conv.h), a vector of channels at a time. What each point becomes is for
// emit(point, vector) to say.
#pragma once

#include "vec.h"
#include "winograd_conv.h"

namespace gan_fast {
namespace GF_LEVEL {

// B^T d for one line of four.
template <class V>
GF_INLINE void transform_four(V d0, V d1, V d2, V d3, V* out) {
  out[0] = d0 - d2;
  out[1] = d1 + d2;
  out[2] = d2 - d1;
  out[3] = d1 - d3;
}

template <class T, class Emit>
GF_INLINE void input_points(const T* piece, int64_t row_stride, const Emit& emit) {
  Vec<T> by_row[4][4];
#pragma GCC unroll 4
  for (int x = 0; x < 4; ++x) {
    const T* column = piece + x * kChannelBlock;
    Vec<T> line[4];
    transform_four(load<T>(column), load<T>(column + row_stride), load<T>(column + 2 * row_stride), load<T>(column + 3 * row_stride),
                   line);
#pragma GCC unroll 4
    for (int y = 0; y < 4; ++y) by_row[y][x] = line[y];
  }
#pragma GCC unroll 4
  for (int y = 0; y < 4; ++y) {
    Vec<T> line[4];
    transform_four(by_row[y][0], by_row[y][1], by_row[y][2], by_row[y][3], line);
#pragma GCC unroll 4
    for (int x = 0; x < 4; ++x) emit(y * 4 + x, line[x]);
  }
}

// G g for one line of three.
template <class T>
GF_INLINE void transform_three(Vec<T> g0, Vec<T> g1, Vec<T> g2, Vec<T>* out) {
  const Vec<T> even = (g0 + g2) * splat<T>(T(0.5)), odd = g1 * splat<T>(T(0.5));
  out[0] = g0;
  out[1] = even + odd;
  out[2] = even - odd;
  out[3] = g2;
}

// taps: [3][3] lines, null where there is no tap; the vector at `lane` of each.
template <class T, class Emit>
GF_INLINE void weight_points(const T* const* taps, int lane, const Emit& emit) {
  Vec<T> by_row[4][3];
  for (int x = 0; x < 3; ++x) {
    Vec<T> g[3], line[4];
    for (int y = 0; y < 3; ++y) g[y] = taps[y * 3 + x] == nullptr ? Vec<T>{} : load<T>(taps[y * 3 + x] + lane);
    transform_three<T>(g[0], g[1], g[2], line);
    for (int y = 0; y < 4; ++y) by_row[y][x] = line[y];
  }
  for (int y = 0; y < 4; ++y) {
    Vec<T> line[4];
    transform_three<T>(by_row[y][0], by_row[y][1], by_row[y][2], line);
    for (int x = 0; x < 4; ++x) emit(y * 4 + x, line[x]);
  }
}

// A y for one line of two.
template <class V>
GF_INLINE void transform_two(V y0, V y1, V* out) {
  out[0] = y0;
  out[1] = y0 + y1;
  out[2] = y0 - y1;
  out[3] = -y1;
}

template <class T, class Emit>
GF_INLINE void gradient_points(const T* piece, int64_t row_stride, const Emit& emit) {
  constexpr int lanes = VecOf<T>::lanes;
  Vec<T> by_row[2][4];
  for (int x = 0; x < 2; ++x) {
    Vec<T> line[4];
    transform_two(load<T>(piece + x * 2 * lanes), load<T>(piece + row_stride + x * 2 * lanes), line);
    for (int y = 0; y < 4; ++y) by_row[x][y] = line[y];
  }
#pragma GCC unroll 4
  for (int y = 0; y < 4; ++y) {
    Vec<T> line[4];
    transform_two(by_row[0][y], by_row[1][y], line);
#pragma GCC unroll 4
    for (int x = 0; x < 4; ++x) emit(y * 4 + x, line[x]);
  }
}

}  // namespace GF_LEVEL
}  // namespace gan_fast
