// Matrices turned over: what stands between PyTorch's plain order (N, C, pixels) and channels-last (N, pixels, C). PyTorch's own copy
// reads or writes an element at a time, at a sixth of the memory's rate.
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

// The kernel of one piece: columns first .. last - 1 of one matrix.
struct TransposeTable {
  void (*f32)(const Transpose& args, int64_t matrix, int64_t first, int64_t last);
  void (*f64)(const Transpose& args, int64_t matrix, int64_t first, int64_t last);
  void (*bf16)(const Transpose& args, int64_t matrix, int64_t first, int64_t last);
};

GAN_FAST_DECLARE_TABLE(TransposeTable, transpose_table)

}  // namespace gan_fast
