// Matrices turned over: what stands between PyTorch's plain order (N, C, pixels) and channels-last (N, pixels, C). PyTorch's own copy
// reads or writes an element at a time, at a sixth of the memory's rate. And between weights and the panels of the kernels.
#pragma once

#include <cstdint>

#include "isa.h"

namespace gan_fast {

// to[matrix][column][row] = from[matrix][row][column]; both dense.
struct Transpose {
  int dtype;  // 0 float, 1 double, 2 bfloat16
  int64_t matrices, rows, columns;
  const void* from;
  void* to;
};

void transpose(const Transpose& args, int threads);

// A piece of a matrix: to[column * to_step + row] = from[row * from_step + column].
template <class E>
struct TransposePiece {
  const E* from;
  int64_t from_step;
  E* to;
  int64_t to_step;
  int64_t rows, columns;
};

// By the size of an element: nothing is computed.
struct TransposeTable {
  void (*bytes2)(const TransposePiece<uint16_t>& piece);
  void (*bytes4)(const TransposePiece<uint32_t>& piece);
  void (*bytes8)(const TransposePiece<uint64_t>& piece);
};

GAN_FAST_DECLARE_TABLE(TransposeTable, transpose_table)

template <class S>
void transpose_piece(const TransposePiece<S>& piece) {
  const TransposeTable& table = transpose_table_for_level();
  const auto run = [&](auto* kernel, auto bits) {
    using E = decltype(bits);
    kernel({reinterpret_cast<const E*>(piece.from), piece.from_step, reinterpret_cast<E*>(piece.to), piece.to_step, piece.rows, piece.columns});
  };
  if constexpr (sizeof(S) == 2) {
    run(table.bytes2, uint16_t{});
  } else if constexpr (sizeof(S) == 4) {
    run(table.bytes4, uint32_t{});
  } else {
    run(table.bytes8, uint64_t{});
  }
}

}  // namespace gan_fast
