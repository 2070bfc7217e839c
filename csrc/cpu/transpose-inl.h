// Kernel text of transpose, compiled once per level: square blocks in registers, edges an element at a time.
#include "cpu/transpose.h"
#include "cpu/vec.h"

namespace gan_fast {
namespace GF_LEVEL {

extern const TransposeTable transpose_table;

namespace {

// 16 registers of 16 elements at most: vectors of halves are half as long as the level's.
template <class E>
constexpr int kSide = GF_VECTOR_BYTES / (sizeof(E) == 2 && GF_VECTOR_BYTES > 16 ? 4 : static_cast<int>(sizeof(E)));

template <class E>
struct Line {
  typedef E type __attribute__((vector_size(kSide<E> * sizeof(E))));
  typedef E unaligned __attribute__((vector_size(kSide<E> * sizeof(E)), aligned(sizeof(E)), may_alias));
};

// One stage: of each pair of lines HALF apart, the blocks of HALF x HALF off the diagonal change places.
template <int HALF, class E>
static inline __attribute__((always_inline)) void exchange(typename Line<E>::type* lines) {
  constexpr int side = kSide<E>;
#ifndef __clang__
  decltype(lines[0] < lines[0]) upper{}, lower{};
#pragma GCC unroll 32
  for (int i = 0; i < side; ++i) {
    upper[i] = (i & HALF) == 0 ? i : side + i - HALF;
    lower[i] = (i & HALF) == 0 ? i + HALF : side + i;
  }
#endif
#pragma GCC unroll 32
  for (int r = 0; r < side; ++r) {
    if ((r & HALF) != 0) continue;
    const auto a = lines[r], b = lines[r + HALF];
#ifdef __clang__
    for (int i = 0; i < side; ++i) {
      lines[r][i] = (i & HALF) == 0 ? a[i] : b[i - HALF];
      lines[r + HALF][i] = (i & HALF) == 0 ? a[i + HALF] : b[i];
    }
#else
    lines[r] = __builtin_shuffle(a, b, upper);
    lines[r + HALF] = __builtin_shuffle(a, b, lower);
#endif
  }
  if constexpr (HALF > 1) exchange<HALF / 2, E>(lines);
}

template <class E>
static inline __attribute__((always_inline)) void block(const E* from, int64_t columns, E* to, int64_t rows) {
  constexpr int side = kSide<E>;
  typename Line<E>::type lines[side];
#pragma GCC unroll 32
  for (int r = 0; r < side; ++r) {
    lines[r] = *reinterpret_cast<const typename Line<E>::unaligned*>(from + r * columns);
    __builtin_prefetch(from + r * columns + 4 * side, 0, 3);
  }
  exchange<side / 2, E>(lines);
#pragma GCC unroll 32
  for (int c = 0; c < side; ++c) *reinterpret_cast<typename Line<E>::unaligned*>(to + c * rows) = lines[c];
}

template <class E>
void transpose_columns(const Transpose& args, int64_t matrix, int64_t first, int64_t last) {
  constexpr int side = kSide<E>;
  const int64_t rows = args.rows, columns = args.columns;
  const E* const from = static_cast<const E*>(args.from) + matrix * rows * columns;
  E* const to = static_cast<E*>(args.to) + matrix * rows * columns;
  const auto rest = [&](int64_t c_begin, int64_t c_end, int64_t r_begin, int64_t r_end) {
    for (int64_t c = c_begin; c < c_end; ++c) {
      for (int64_t r = r_begin; r < r_end; ++r) to[c * rows + r] = from[r * columns + c];
    }
  };
  int64_t c = first;
  for (; c + side <= last; c += side) {
    int64_t r = 0;
    for (; r + side <= rows; r += side) block<E>(from + r * columns + c, columns, to + c * rows + r, rows);
    rest(c, c + side, r, rows);
  }
  rest(c, last, 0, rows);
}

}  // namespace

const TransposeTable transpose_table = {transpose_columns<uint32_t>, transpose_columns<uint64_t>, transpose_columns<uint16_t>};

}  // namespace GF_LEVEL
}  // namespace gan_fast
