// The weight gradient of the convolutions to and from few channels:
//
//   gw[(i, t), c] = sum over q of X[q, (i, t)] * v[q, c]        X: conv_transpose_plan.h, from the tensor of few channels
//
// v is the tensor of many channels. The sum over pixels is cut into parts, each the work of a block for 64 rows and 64 channels; a
// second launch adds the parts up in their order. No part depends on the device, so neither do the bits of the result.
#pragma once

#include "conv_transpose-inl.h"

namespace gan_fast::cuda {

constexpr int kGradRows = 64, kGradTiles = 8, kGradChannels = kGradTiles * kColumns;
constexpr int kGradSteps = 8;  // of 8 words of pixels that a block has in shared memory at a time

template <Product P>
constexpr int kGradPixels = kGradSteps * kWords * kPerWord<P>;

struct GradPlan {
  TransposePlan shape;
  int row_groups, groups;  // of 64 rows, of 64 channels
  int stages, parts;       // of the pixels: what is in shared memory at a time; stages that a part has
};

struct GradTensors {
  const void *few, *many;  // dense channels-last
  float* partial;          // part, row, channel
  void* grad;              // row, channel: the weight, dense channels-last
};

inline GradPlan plan_grad(const ConvGeometry& g, Product product) {
  constexpr int busy = 528;
  GradPlan p{};
  p.shape = plan_transpose(g, product);
  p.row_groups = ceil_div(p.shape.inner, kGradRows);
  p.groups = ceil_div(p.shape.out_channels, kGradChannels);
  const int stages = ceil_div(p.shape.pixels, kGradSteps * kWords * (is_half(product) ? 2 : 1));
  p.stages = ceil_div(stages, greater(1, lesser(stages, busy / (p.row_groups * p.groups))));
  p.parts = ceil_div(stages, p.stages);
  return p;
}

template <Product P>
struct GradShared {
  Tap taps[kGradRows];
  Pixel pixels[kGradPixels<P>];
  Chunk rows[kGradRows / kRows * kGradSteps * kWarp];
  uint32_t columns[kGradSteps * kGradTiles * kWarp * 2];
};

template <Product P, class M>
GF_DEVICE void load_stage(M& m, const GradPlan& p, const GradTensors& t, int first_pixel, int first_channel, GradShared<P>& s) {
  const TransposeTensors few{t.few, nullptr, nullptr, nullptr, nullptr, kNone, kNone, 0.0f, 0.0f};
  m.threads([&](int thread) {
    for (int i = thread; i < kGradRows / kRows * kGradSteps * kWarp * 4; i += kThreads) {
      const int part = i % 4, lane = i / 4 % kWarp, step = i / (4 * kWarp) % kGradSteps, tile = i / (4 * kWarp * kGradSteps);
      const Tap tap = s.taps[tile * kRows + lane_group(lane) + part % 2 * 8];
      const int k = (step * kWords + lane_place(lane) + part / 2 * 4) * kPerWord<P>;
      uint32_t word = 0;
      GF_UNROLL
      for (int j = 0; j < kPerWord<P>; ++j) word |= gathered<P>(m, p.shape, few, s.pixels[k + j], tap) << (j * 16);
      s.rows[i / 4].word[part] = P == kTf32 ? m.round_to_tf32(word) : word;
    }
    for (int i = thread; i < kGradSteps * kWords * kGradChannels; i += kThreads) {
      const int channel = i % kGradChannels, number = i / kGradChannels % kWords, step = i / (kGradChannels * kWords);
      const int k = first_pixel + (step * kWords + number) * kPerWord<P>;
      uint32_t word = 0;
      GF_UNROLL
      for (int j = 0; j < kPerWord<P>; ++j) {
        if (k + j >= p.shape.pixels || first_channel + channel >= p.shape.out_channels) continue;
        const int64_t place = static_cast<int64_t>(k + j) * p.shape.out_channels + first_channel + channel;
        word |= static_cast<uint32_t>(m.load(static_cast<const Element<P>*>(t.many) + place)) << (j * 16);
      }
      const int lane = channel % kColumns * 4 + number % 4, tile = channel / kColumns;
      s.columns[((step * kGradTiles + tile) * kWarp + lane) * 2 + number / 4] = P == kTf32 ? m.round_to_tf32(word) : word;
    }
  });
}

template <Product P, class M>
GF_DEVICE void grad_block(M& m, const GradPlan& p, const GradTensors& t, int block, GradShared<P>& s) {
  constexpr int halves = kWarps / (kGradRows / kRows), tiles = kGradTiles / halves;  // a warp: 16 rows, half of the columns
  const int group = block % p.groups, row_group = block / p.groups % p.row_groups, part = block / (p.groups * p.row_groups);
  typename M::template PerThread<ProductSums<tiles>> sums;
  m.threads([&](int thread) {
    sums[thread] = {};
    if (thread < kGradRows) s.taps[thread] = tap_of(p.shape, row_group * kGradRows + thread);
  });
  GF_ROLLED
  for (int stage = part * p.stages; stage < (part + 1) * p.stages; ++stage) {
    const int first_pixel = stage * kGradPixels<P>;
    if (first_pixel >= p.shape.pixels) break;
    m.threads([&](int thread) {
      if (thread < kGradPixels<P>) s.pixels[thread] = pixel_of(p.shape, first_pixel + thread);
    });
    m.sync();
    load_stage<P>(m, p, t, first_pixel, group * kGradChannels, s);
    m.sync();
    m.warps([&](int warp) {
      const Chunk* rows = s.rows + warp / halves * kGradSteps * kWarp;
      const uint32_t* columns = s.columns + warp % halves * tiles * kWarp * 2;
      GF_ROLLED
      for (int step = 0; step < kGradSteps; ++step) {
        multiply_step<P, tiles>(m, warp, rows + step * kWarp, columns + step * kGradTiles * kWarp * 2, sums);
      }
    });
    m.sync();
  }
  m.warps([&](int warp) {
    m.lanes(warp, [&](int lane, int thread) {
      GF_UNROLL
      for (int i = 0; i < tiles * 4; ++i) {
        const int row = row_group * kGradRows + warp / halves * kRows + lane_group(lane) + i % 4 / 2 * 8;
        const int channel = group * kGradChannels + (warp % halves * tiles + i / 4) * kColumns + 2 * lane_place(lane) + i % 2;
        if (row >= p.shape.inner || channel >= p.shape.out_channels) continue;
        const int64_t place = (static_cast<int64_t>(part) * p.shape.inner + row) * p.shape.out_channels + channel;
        m.store(t.partial + place, sums[thread].of[i / 4][i % 4]);
      }
    });
  });
}

inline int64_t grad_elements(const GradPlan& p) { return static_cast<int64_t>(p.shape.inner) * p.shape.out_channels; }

// The second launch: one element for each thread.
template <Product P, class M>
GF_DEVICE void add_parts_block(M& m, const GradPlan& p, const GradTensors& t, int block) {
  m.threads([&](int thread) {
    const int64_t elements = static_cast<int64_t>(p.shape.inner) * p.shape.out_channels;
    const int64_t i = static_cast<int64_t>(block) * kThreads + thread;
    if (i >= elements) return;
    double sum = 0.0;
    for (int part = 0; part < p.parts; ++part) sum += m.load(t.partial + part * elements + i);
    m.store(static_cast<Element<P>*>(t.grad) + i, m.template narrow<P>(static_cast<float>(sum)));
  });
}

}  // namespace gan_fast::cuda
