// The engine of conv and conv_transpose: a register-blocked product over gathered pixels (gather_plan.h), channels-last.
//
// Work is cut into tiles of the output (several small images, or a band of a large one). A tile's inputs are copied once into
// blocks of kChannelBlock words (words.h), [image][channel block][plane][row][column][channel], zero-padded, so that the inner loops
// have no edges and a constant pixel stride. Weights are packed once per call, [phase][output block][tap][channel][lane].
// Few output channels have an engine of their own: few_conv.h.
#pragma once

#include <cstdint>

#include "common/bf16.h"
#include "common/geometry.h"
#include "fetch.h"
#include "gather_plan.h"
#include "isa.h"
#include "words.h"

namespace gan_fast {

constexpr int64_t kChannelBlock = 16;
constexpr int kMaxRuns = 7;  // runs of one register block; each needs a base pointer in a register

// Copy of one row of a tile: `columns` pixels of one plane, `step` input columns apart, from input column `first`. S: what the
// input is stored in, W: the tile's words (words.h).
template <class S, class W>
struct PackRow {
  const S* input;       // row of the input at its first channel, or null: the row lies outside, write zeros
  const S* prologue_y;  // same place in the prologue's operand, or null
  int64_t pixel_stride;
  int64_t first, step, width;  // input columns outside [0, width) are zero
  int64_t columns, channels;
  W* tile;
  int64_t pixel;         // from a packed pixel to the next
  int64_t block_stride;  // between channel blocks
  Parts parts;           // if words have any
  int prologue_activation;
  Arithmetic<S> prologue_slope;
};

// Copy of `n` neighbouring elements. T: what the tile's words are made of.
template <class S, class T>
struct PackLine {
  const S* input;
  const S* prologue_y;  // or null
  int64_t n;
  T* out;
  int prologue_activation;
  Arithmetic<S> prologue_slope;
};

// One (tap, channel block): `depth` words of channels starting `offset` elements after a pixel's place in the tile.
struct GemmStep {
  int64_t offset;
  int64_t depth;
};

// blocks x (runs of run_length pixels) x lanes: sums (+)= A * B over the steps.
template <class W>
struct GemmProduct {
  const W* tile;
  const int64_t* run_in;  // [blocks][runs] offsets into the tile
  const GemmStep* steps;
  const int64_t* offsets;  // with runs of one pixel: of words, each a step, instead of steps; or null. They and run_in count elements then
  int64_t step_count;
  int64_t chain;   // steps summed in one chain, whose sums are then added up; 0: all
  const W* panel;  // [K][lanes per block]
  Sum<W>* sums;    // [blocks][runs * run_length][lanes per block]
  int64_t blocks;
  int run_length;
  bool accumulate;    // add to sums
  Fetch ahead[2];     // at every step of the even blocks, and of the odd ones
  int64_t out_lanes;  // valid output channels of this block
};

// What becomes of the sums after the last chunk of K: bias, activation, and the output.
template <class S>
struct GemmStore {
  bool finish;             // this is the last chunk
  bool stream;             // store around the cache
  const int64_t* run_out;  // [blocks][runs] offsets into the output, or -1: a repeated run that is not stored
  S* output;
  int64_t out_pixel_stride;
  const Arithmetic<S>* bias;  // padded to the block, or null
  int activation;
  Arithmetic<S> slope;
};

template <class S, class W>
struct GemmJob : GemmProduct<W>, GemmStore<S> {};

// Few output channels: the vector runs over input channels, one accumulator for each output pixel of a row.
constexpr int kFewTaps = 8;
template <class W>
struct FewTapGroup {
  const W* row;     // that it reads: column 0
  int64_t column;   // of the first tap, from a pixel's own
  int64_t weights;  // of its first vector in the packed weights
  int taps;         // neighbours along the row: at most kFewTaps
};

template <class S, class W>
struct FewJob {
  bool packed;                                  // rows of pixels kChannelBlock apart, as many as are read
  int64_t columns, column_step, column_stride;  // otherwise: columns that a row has; from a pixel's to the next one's; elements between two
  const W* zeros;                               // what the others hold
  int64_t block_stride, blocks;                 // channel blocks
  const int64_t* segment_in;                    // [segments] column of the first of `pixels` neighbouring pixels
  const int64_t* segment_out;
  const int64_t* segment_valid;  // pixels of the segment to store
  int64_t segments;
  bool wide;  // segments of few_pixels_wide pixels, otherwise of half as many
  const FewTapGroup<W>* groups;
  int64_t group_count;
  const W* weights;  // [group][channel block][tap][kChannelBlock]
  S* output;
  int64_t out_pixel_stride;
  Arithmetic<S> bias;
  int activation;
  Arithmetic<S> slope;
  Fetch ahead;  // twice for each segment, group and channel block
};

template <class S, class W>
struct GatherFunctions {
  void (*pack_row)(const PackRow<S, W>&);
  void (*pack_line)(const PackLine<S, Element<W>>&);
  void (*gemm)(const GemmJob<S, W>&);
  void (*few)(const FewJob<S, W>&);
};

struct GatherKernels {
  int pixels;           // register block: pixels (runs * run_length at most)
  int few_pixels_wide;  // pixels per segment of the few-output-channel kernel
  int vector_bytes;
  GatherFunctions<float, float> f32;
  GatherFunctions<Bf16, float> bf16;
  GatherFunctions<double, double> f64;  // portable level only
};

GAN_FAST_DECLARE_TABLE(GatherKernels, gather_kernels)

// Where weight (group, output channel, input channel, tap) lies: in PyTorch's plain order taps are neighbours, in channels-last
// order the channels of the weight's second axis are.
struct WeightStrides {
  int64_t group, out, in, tap;
};

// y = act(gather(x * act'(prologue_y)) + bias); dense channels-last x and y. S: float, Bf16 or double. conv.cpp and
// conv_transpose.cpp say how their outputs gather.
template <class S>
void gather_conv(const ConvGeometry& geometry, const AxisPlan& axis_y, const AxisPlan& axis_x, const WeightStrides& strides,
                 const S* x, const S* weight, S* y, const Epilogue& epilogue, const Prologue& prologue, int threads);

}  // namespace gan_fast
