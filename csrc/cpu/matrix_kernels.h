// Kernels of the matrix registers (AMX): products of bf16 pairs, 16 x 16 sums at a time. Their text is bf16_matrix-inl.h.
//
// They take what the pair kernels pack: a pixel's words lie side by side as a row of the left operand wants them, and a panel of weights
// [word][lane] is a right operand. Native at the level amx_bf16; tests have them emulated elsewhere.
//
// A float is the sum of three bf16: of 24 bits each holds the 8 that those before it leave. Of the nine products of two floats' parts the
// three smallest are below 2^-25 of the product and left out; six are still made in less time than a product of floats takes the vectors.
// Sums are as exact as theirs, down to about 2^-126 for each product: what is below, of operands and of products of parts, the instruction
// takes for zero. And infinity minus a part of it is NaN. Where a float's own last part is so small, or not finite, packing tells (Parts), and
// another engine has to serve the call. A first part is rounded: products just below the largest float may overflow.
//   Source: Henry, Tang, Heinecke, "Leveraging the bfloat16 Artificial Intelligence Datatype For Higher-Precision Computations",
//   https://arxiv.org/abs/1904.06376.
#pragma once

#include <cstdint>

#include "common/bf16.h"
#include "common/geometry.h"
#include "conv_weight_grad.h"
#include "gather_conv.h"
#include "words.h"

namespace gan_fast {

// Words of bf16 that hold one of S.
template <class S>
constexpr int64_t kParts = 1;
template <>
inline constexpr int64_t kParts<float> = 3;

constexpr int64_t kMatrixRows = 16;   // of a register: positions or channels
constexpr int64_t kMatrixLanes = 32;  // output channels of a block: two registers side by side

// blocks x (runs of `rows` positions) x kMatrixLanes: act(A * B over the steps, each of `depth` words, + bias).
template <class S>
struct MatrixJob {
  const Bf16Pair* tile;
  int64_t tile_part;       // from a word to its next part
  int64_t position_words;  // between neighbouring positions of a run
  const int64_t* run_in;   // [blocks][runs] offsets into the tile
  int64_t blocks;
  int rows, depth;         // at most 16
  const int64_t* steps;    // offsets into the tile
  int64_t step_count;
  const Bf16Pair* panel;   // [step][part][depth][kMatrixLanes]
  bool fetch;              // the panel from far away, and the next one behind it
  float* sums;             // room for kMatrixSums
  const int64_t* row_out;  // [blocks][runs][16] offsets into the output, or -1: not an output
  S* output;
  float* wide_output;      // instead, if not null: what is added up, as it is
  int64_t out_lanes;  // valid output channels of this block; from 16 down there are 4 runs in a block, else 2
  const float* bias;  // padded to the block, or null
  bool stream;        // store around the cache; lines of a block begin lines of it
  int activation;
  float slope;
};

// Runs of a block with so many valid output channels.
static constexpr int64_t matrix_runs(int64_t out_lanes) { return out_lanes <= kMatrixLanes / 2 ? 4 : 2; }

constexpr int64_t kMatrixBlocks = 2;  // that are multiplied together
constexpr int64_t kMatrixSums = kMatrixBlocks * 4 * kMatrixRows * kMatrixLanes;

// Copy of `columns` pixels, at most 32 elements of each, filled up with a zero to whole words. Pixels may share elements.
template <class S>
struct MatrixPixels {
  const S* input;       // of the first column that lies inside, or null: all are zero
  const S* prologue_y;  // or null
  int64_t first, last;     // columns outside [first, last) are zero
  int64_t columns, elements, pixel_stride;
  Bf16Pair* out;
  Parts parts;
  int prologue_activation;
  float prologue_slope;
};

// line[u * step][out] = bias[out] + the sum over taps of from[u * lanes + taps[..] + out], for `count` places u and at most 16 outs.
struct MatrixLanes {
  const float* from;
  int64_t lanes;
  const int64_t* taps;
  int64_t tap_count, count, outs;
  const float* bias;  // 16 entries
  float* line;
  int64_t step;
};

// For each of `count` right operands: sums[16][16] += over `lines` x `steps` x 16 words: a[step][row][word] * b[word][lane]. A step's words
// of b follow those of the step before.
template <class S>
constexpr int kMatrixOperands = kParts<S> == 1 ? 6 : 4;
template <class S>
struct MatrixOuterJob {
  const Bf16Pair* a;
  const Bf16Pair* b[kMatrixOperands<S>];
  int64_t a_part, b_part;  // from a word to its next part
  int64_t a_line, b_line;
  int64_t lines, steps;
  float* sums[kMatrixOperands<S>];
  int count;
};

// out[channel * channel_step + tap * tap_step] = the sum over parts, for the first `channels` of 16; one of the steps is 1.
template <class S>
struct MatrixGradient {
  const float* sums;  // a row of 16 channels for each tap
  int64_t tap_sums, part_sums, parts;  // strides, and how many parts
  int64_t taps, channels;
  S* out;
  int64_t channel_step, tap_step;
};

template <class S>
struct MatrixFunctions {
  void (*multiply)(const MatrixJob<S>&);
  void (*pack_pixels)(const MatrixPixels<S>&);
  void (*activate)(const float* in, int64_t count, int activation, float slope, S* out);
  void (*outer)(const MatrixOuterJob<S>&);
  void (*store_gradient)(const MatrixGradient<S>&);
};

struct MatrixKernels {
  MatrixFunctions<Bf16> bf16;
  MatrixFunctions<float> f32;
  void (*add_lanes)(const MatrixLanes&);
  void (*transpose)(Bf16Pair* blocks, int64_t count);  // of 16 x 16 words, each in its place
  // Of floats, what the pair kernels have for bf16.
  void (*split_row)(const PackRow<float, Bf16Pair>&);
  WeightGradFunctions<float, Bf16Pair> split_weight_grad;  // pack_channels alone
  // Words of two lines of kMatrixLanes floats, the second of which may be null.
  void (*split_lines)(const float* first, const float* second, Bf16Pair* out, const Parts& parts);
};

// Those of the level in use; null where there are none.
const MatrixKernels* matrix_kernels();

// Test hook: emulated registers wherever there are pair kernels, emulated ones included.
void set_emulated_matrix(bool on);

}  // namespace gan_fast
