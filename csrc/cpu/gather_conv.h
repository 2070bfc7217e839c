// The engine of conv and conv_transpose: a register-blocked product over gathered pixels (gather_plan.h), channels-last.
//
// Work is cut into tiles of the output (several small images, or a band of a large one). A tile's inputs are copied once into
// blocks of kChannelBlock channels, [image][channel block][plane][row][column][channel], zero-padded, so that the inner loops
// have no edges and a constant pixel stride. Weights are packed once per call, [phase][output block][tap][channel][lane].
#pragma once

#include <cstdint>

#include "common/geometry.h"
#include "gather_plan.h"
#include "isa.h"

namespace gan_fast {

constexpr int64_t kChannelBlock = 16;
constexpr int kMaxRuns = 7;  // runs of one register block; each needs a base pointer in a register

// Copy of one row of a tile: `columns` pixels of one plane, `step` input columns apart, from input column `first`.
template <class T>
struct PackRow {
  const T* input;       // row of the input at its first channel, or null: the row lies outside, write zeros
  const T* prologue_y;  // same place in the prologue's operand, or null
  int64_t pixel_stride;
  int64_t first, step, width;  // input columns outside [0, width) are zero
  int64_t columns, channels;
  T* tile;
  int64_t block_stride;  // between channel blocks
  int prologue_activation;
  T prologue_slope;
};

// One (tap, channel block): `depth` channels starting `offset` elements after a pixel's place in the tile.
struct GemmStep {
  int64_t offset;
  int64_t depth;
};

// blocks x (runs of run_length pixels) x lanes: C (+)= A * B over the steps, then, at the last chunk of K, the epilogue and the store.
template <class T>
struct GemmJob {
  const T* tile;
  const int64_t* run_in;   // [blocks][runs] offsets into the tile
  const int64_t* run_out;  // [blocks][runs] offsets into the output, or -1: a repeated run that is not stored
  const GemmStep* steps;
  int64_t step_count;
  const T* panel;  // [K][lanes per block]
  T* sums;         // [blocks][runs * run_length][lanes per block]
  int64_t blocks;
  int run_length;
  bool accumulate;  // add to sums
  bool finish;      // apply the epilogue and store
  bool stream;      // store around the cache
  T* output;
  int64_t out_pixel_stride;
  int64_t out_lanes;  // valid output channels of this block
  const T* bias;      // padded to the block, or null
  int activation;
  T slope;
};

// Few output channels: the vector runs over input channels, one accumulator for each output pixel of a row.
struct FewTapGroup {
  int64_t offset;  // of the first tap in the tile
  int64_t weights; // of its first vector in the packed weights
  int taps;        // neighbours along the row: at most kFewTaps
};
constexpr int kFewTaps = 8;

template <class T>
struct FewJob {
  const T* tile;
  int64_t block_stride, blocks;  // channel blocks
  const int64_t* segment_in;     // [segments] offsets into the tile of `pixels` neighbouring pixels
  const int64_t* segment_out;
  const int64_t* segment_valid;  // pixels of the segment to store
  int64_t segments;
  int wide;  // 1: segments of few_pixels_wide pixels, 0: of half as many
  const FewTapGroup* groups;
  int64_t group_count;
  const T* weights;  // [group][channel block][tap][kChannelBlock]
  T* output;
  int64_t out_pixel_stride;
  T bias;
  int activation;
  T slope;
};

template <class T>
struct GatherFunctions {
  void (*pack_row)(const PackRow<T>&);
  void (*gemm)(const GemmJob<T>&);
  void (*few)(const FewJob<T>&);
};

struct GatherKernels {
  int pixels;           // register block: pixels (runs * run_length at most)
  int few_pixels_wide;  // pixels per segment of the few-output-channel kernel
  int vector_bytes;
  GatherFunctions<float> f32;
  GatherFunctions<double> f64;  // portable level only
};

GAN_FAST_DECLARE_TABLE(GatherKernels, gather_kernels)

// Where weight (group, output channel, input channel) lies in torch's layout of the operator; its taps are neighbours.
struct WeightStrides {
  int64_t group, out, in;
};

// y = act(gather(x * act'(prologue_y)) + bias); dense channels-last x and y. T: float or double. conv.cpp and conv_transpose.cpp say
// how their outputs gather.
template <class T>
void gather_conv(const ConvGeometry& geometry, const AxisPlan& axis_y, const AxisPlan& axis_x, const WeightStrides& strides,
                 const T* x, const T* weight, T* y, const Epilogue& epilogue, const Prologue& prologue, int threads);

}  // namespace gan_fast
