// Kernel text of transpose, compiled once per level: square blocks in registers; edges too where loads can be masked, an element at a time elsewhere.
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

// Edges in registers too, where loads and stores can be masked: `count` of a line, zeros behind; memory behind them is not touched.
#if defined(__AVX512F__)
static inline __attribute__((always_inline)) Line<uint32_t>::type load_some(const uint32_t* p, int count) {
  return reinterpret_cast<Line<uint32_t>::type>(_mm512_maskz_loadu_epi32(static_cast<__mmask16>((1u << count) - 1), p));
}
static inline __attribute__((always_inline)) Line<uint64_t>::type load_some(const uint64_t* p, int count) {
  return reinterpret_cast<Line<uint64_t>::type>(_mm512_maskz_loadu_epi64(static_cast<__mmask8>((1u << count) - 1), p));
}
static inline __attribute__((always_inline)) Line<uint16_t>::type load_some(const uint16_t* p, int count) {
  return reinterpret_cast<Line<uint16_t>::type>(_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << count) - 1), p));
}
static inline __attribute__((always_inline)) void store_some(uint32_t* p, Line<uint32_t>::type line, int count) {
  _mm512_mask_storeu_epi32(p, static_cast<__mmask16>((1u << count) - 1), reinterpret_cast<__m512i>(line));
}
static inline __attribute__((always_inline)) void store_some(uint64_t* p, Line<uint64_t>::type line, int count) {
  _mm512_mask_storeu_epi64(p, static_cast<__mmask8>((1u << count) - 1), reinterpret_cast<__m512i>(line));
}
static inline __attribute__((always_inline)) void store_some(uint16_t* p, Line<uint16_t>::type line, int count) {
  _mm256_mask_storeu_epi16(p, static_cast<__mmask16>((1u << count) - 1), reinterpret_cast<__m256i>(line));
}
#endif

template <class E>
static inline __attribute__((always_inline)) void block(const TransposePiece<E>& piece, int64_t row, int64_t column) {
  constexpr int side = kSide<E>;
  const E* const from = piece.from + row * piece.from_step + column;
  E* const to = piece.to + column * piece.to_step + row;
  typename Line<E>::type lines[side];
#pragma GCC unroll 32
  for (int r = 0; r < side; ++r) {
    lines[r] = *reinterpret_cast<const typename Line<E>::unaligned*>(from + r * piece.from_step);
    __builtin_prefetch(from + r * piece.from_step + 4 * side, 0, 3);
  }
  exchange<side / 2, E>(lines);
#pragma GCC unroll 32
  for (int c = 0; c < side; ++c) *reinterpret_cast<typename Line<E>::unaligned*>(to + c * piece.to_step) = lines[c];
}

template <class E>
void edge(const TransposePiece<E>& piece, int64_t row, int64_t column, int rows, int columns) {
  const E* const from = piece.from + row * piece.from_step + column;
  E* const to = piece.to + column * piece.to_step + row;
#if defined(__AVX512F__)
  constexpr int kFewest = 4;  // lines and elements of each; below, one by one
  if (rows >= kFewest && columns >= kFewest) {
    constexpr int side = kSide<E>;
    typename Line<E>::type lines[side];
#pragma GCC unroll 32
    for (int r = 0; r < side; ++r) lines[r] = r < rows ? load_some(from + r * piece.from_step, columns) : typename Line<E>::type{};
    exchange<side / 2, E>(lines);
#pragma GCC unroll 32
    for (int c = 0; c < side; ++c) {
      if (c < columns) store_some(to + c * piece.to_step, lines[c], rows);
    }
    return;
  }
#endif
  for (int c = 0; c < columns; ++c) {
    for (int r = 0; r < rows; ++r) to[c * piece.to_step + r] = from[r * piece.from_step + c];
  }
}

template <class E>
void transpose_kernel(const TransposePiece<E>& piece) {
  constexpr int side = kSide<E>;
  for (int64_t c = 0; c < piece.columns; c += side) {
    const int columns = static_cast<int>(piece.columns - c < side ? piece.columns - c : side);
    for (int64_t r = 0; r < piece.rows; r += side) {
      const int rows = static_cast<int>(piece.rows - r < side ? piece.rows - r : side);
      if (rows == side && columns == side) {
        block<E>(piece, r, c);
      } else {
        edge<E>(piece, r, c, rows, columns);
      }
    }
  }
}

}  // namespace

const TransposeTable transpose_table = {transpose_kernel<uint16_t>, transpose_kernel<uint32_t>, transpose_kernel<uint64_t>};

}  // namespace GF_LEVEL
}  // namespace gan_fast
