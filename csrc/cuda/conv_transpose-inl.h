// The transposed convolution from few channels, for one block of threads; conv_transpose_plan.h says what a block does.
#pragma once

#include "gather.h"

namespace gan_fast::cuda {

// The channel that a column of the product stands for: such that what a thread holds of a pixel are 16 bytes in a row, Tiles / T
// times. T: tiles of columns that make up 16 bytes.
template <Product P>
GF_BOTH int channel_of(int tile, int column) {
  constexpr int T = kPerChunk<P> / 2;
  return tile / T * kColumns * T + column / 2 * kPerChunk<P> + tile % T * 2 + column % 2;
}

template <Product P>
struct TransposeShared {
  Tap* taps;
  Pixel* pixels;
  Chunk* gathered;     // operand A, in the order in which warps read it: warp, step, lane
  uint32_t* weights;  // operand B: step, tile, lane, two words
};

template <Product P>
GF_DEVICE TransposeShared<P> share(const TransposePlan& p, void* shared) {
  auto* taps = static_cast<Tap*>(shared);
  auto* pixels = reinterpret_cast<Pixel*>(taps + p.steps * kWords * kPerWord<P>);
  auto* gathered = reinterpret_cast<Chunk*>(pixels + kTilePixels);
  return {taps, pixels, gathered, reinterpret_cast<uint32_t*>(gathered + kWarps * p.steps * kWarp)};
}

template <Product P, int Tiles, class M>
GF_DEVICE void pack_taps(M& m, const TransposePlan& p, const TransposeTensors& t, int first_k, int first_channel,
                         const TransposeShared<P>& s) {
  m.threads([&](int thread) {
    for (int i = thread; i < p.steps * kWords * kPerWord<P>; i += kThreads) s.taps[i] = tap_of(p, first_k + i);
    for (int i = thread; i < p.steps * Tiles * kWarp * 2; i += kThreads) {
      const int lane = i / 2 % kWarp, tile = i / (2 * kWarp) % Tiles, step = i / (2 * kWarp * Tiles);
      const int k = first_k + (step * kWords + lane_place(lane) + i % 2 * 4) * kPerWord<P>;
      const int channel = first_channel + channel_of<P>(tile, lane_group(lane));
      uint32_t word = 0;
      GF_UNROLL
      for (int j = 0; j < kPerWord<P>; ++j) {
        if (k + j >= p.inner || channel >= p.out_channels) continue;
        const int64_t place = static_cast<int64_t>(k + j) * p.out_channels + channel;
        word |= static_cast<uint32_t>(m.load(static_cast<const Element<P>*>(t.w) + place)) << (j * 16);
      }
      s.weights[i] = P == kTf32 ? m.round_to_tf32(word) : word;
    }
  });
}

template <Product P, class M>
GF_DEVICE void gather_tile(M& m, const TransposePlan& p, const TransposeTensors& t, const TransposeShared<P>& s) {
  m.threads([&](int thread) {
    for (int i = thread; i < kWarps * p.steps * kWarp * 4; i += kThreads) {
      const int part = i % 4, lane = i / 4 % kWarp, step = i / (4 * kWarp) % p.steps, warp = i / (4 * kWarp * p.steps);
      const Pixel pixel = s.pixels[warp * kRows + lane_group(lane) + part % 2 * 8];
      const int k = (step * kWords + lane_place(lane) + part / 2 * 4) * kPerWord<P>;
      uint32_t word = 0;
      GF_UNROLL
      for (int j = 0; j < kPerWord<P>; ++j) word |= gathered<P>(m, p, t, pixel, s.taps[k + j]) << (j * 16);
      s.gathered[i / 4].word[part] = P == kTf32 ? m.round_to_tf32(word) : word;
    }
  });
}

// A thread's sums of 16 rows and Tiles times 8 columns.
template <int Tiles>
struct ProductSums {
  float of[Tiles][4];
};

// sums += 16 rows times the columns, over 8 words of the inner dimension; both as operands lie in shared memory.
template <Product P, int Tiles, class M, class SumsOf>
GF_DEVICE void multiply_step(M& m, int warp, const Chunk* rows, const uint32_t* columns, SumsOf& sums) {
  if constexpr (P != kIeee) {
    typename M::template PerThread<Chunk> a;
    m.lanes(warp, [&](int lane, int thread) { a[thread] = rows[lane]; });
    GF_UNROLL
    for (int tile = 0; tile < Tiles; ++tile) {
      typename M::template PerThread<Chunk> b;
      m.lanes(warp, [&](int lane, int thread) {
        b[thread].word[0] = columns[(tile * kWarp + lane) * 2];
        b[thread].word[1] = columns[(tile * kWarp + lane) * 2 + 1];
      });
      m.template multiply<P>(
          warp, [&](int thread) { return sums[thread].of[tile]; }, [&](int thread) { return a[thread].word; },
          [&](int thread) { return b[thread].word; });
    }
  } else {
    m.lanes(warp, [&](int lane, int thread) {
      GF_ROLLED
      for (int word = 0; word < kWords; ++word) {
        const uint32_t* row = rows[lane_group(lane) * 4 + word % 4].word + word / 4 * 2;
        const float x[2] = {m.as_float(row[0]), m.as_float(row[1])};
        GF_UNROLL
        for (int i = 0; i < Tiles * 4; ++i) {
          const int holder = (lane_place(lane) * 2 + i % 2) * 4 + word % 4;
          const float w = m.as_float(columns[(i / 4 * kWarp + holder) * 2 + word / 4]);
          sums[thread].of[i / 4][i % 4] = fmaf(x[i % 4 / 2], w, sums[thread].of[i / 4][i % 4]);
        }
      }
    });
  }
}

template <Product P, int Tiles, class M, class SumsOf>
GF_DEVICE void multiply_part(M& m, const TransposePlan& p, const TransposeShared<P>& s, SumsOf& sums) {
  m.warps([&](int warp) {
    GF_ROLLED
    for (int step = 0; step < p.steps; ++step) {
      const Chunk* rows = s.gathered + (warp * p.steps + step) * kWarp;
      multiply_step<P, Tiles>(m, warp, rows, s.weights + step * Tiles * kWarp * 2, sums);
    }
  });
}

template <Product P, int Tiles, bool Aligned, class M, class SumsOf>
GF_DEVICE void store_tile(M& m, const TransposePlan& p, const TransposeTensors& t, int tile, int first_channel, SumsOf& sums) {
  constexpr int T = kPerChunk<P> / 2;
  m.warps([&](int warp) {
    m.lanes(warp, [&](int lane, int thread) {
      GF_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int pixel = tile * kTilePixels + warp * kRows + lane_group(lane) + half * 8;
        GF_UNROLL
        for (int chunk = 0; chunk < Tiles / T; ++chunk) {
          const int channel = first_channel + channel_of<P>(chunk * T, 2 * lane_place(lane));
          if (pixel >= p.pixels || channel >= p.out_channels) continue;
          auto* target = static_cast<Element<P>*>(t.y) + static_cast<int64_t>(pixel) * p.out_channels + channel;
          Chunk out{{0, 0, 0, 0}};
          GF_UNROLL
          for (int i = 0; i < kPerChunk<P>; ++i) {
            if (!Aligned && channel + i >= p.out_channels) continue;
            float sum = sums[thread].of[chunk * T + i / 2][half * 2 + i % 2];
            if (t.bias != nullptr) sum += m.template widen<P>(m.load(static_cast<const Element<P>*>(t.bias) + channel + i));
            const Element<P> bits = m.template narrow<P>(activate(sum, t.activation, t.slope));
            if constexpr (Aligned) {
              out.word[i / kPerWord<P>] |= static_cast<uint32_t>(bits) << (i % kPerWord<P> * 16);
            } else {
              m.store(target + i, bits);
            }
          }
          if constexpr (Aligned) m.store_chunk(target, out);
        }
      }
    });
  });
}

template <Product P, int Tiles, bool Aligned, class M>
GF_DEVICE void transpose_block(M& m, const TransposePlan& p, const TransposeTensors& t, int block, void* shared) {
  const int first_channel = block % p.groups * Tiles * kColumns;
  const TransposeShared<P> s = share<P>(p, shared);
  if (p.parts == 1) pack_taps<P, Tiles>(m, p, t, 0, first_channel, s);
  for (int tile = block / p.groups; tile < p.tiles; tile += p.walkers) {
    m.threads([&](int thread) {
      if (thread < kTilePixels) s.pixels[thread] = pixel_of(p, tile * kTilePixels + thread);
    });
    typename M::template PerThread<ProductSums<Tiles>> sums;
    m.threads([&](int thread) { sums[thread] = {}; });
    for (int part = 0; part < p.parts; ++part) {
      if (p.parts > 1) pack_taps<P, Tiles>(m, p, t, part * p.steps * kWords * kPerWord<P>, first_channel, s);
      m.sync();
      gather_tile<P>(m, p, t, s);
      m.sync();
      multiply_part<P, Tiles>(m, p, s, sums);
      m.sync();
    }
    store_tile<P, Tiles, Aligned>(m, p, t, tile, first_channel, sums);
  }
}

// f(product, tiles of columns, aligned) with the constants of the kernel that serves a plan.
template <class F>
void with_transpose_kernel(const TransposePlan& p, const TransposeTensors& t, Product product, F f) {
  with_kernel<8, 16>(product, transpose_column_tiles(p, product), in_chunks(p.out_channels, product) && on_16_bytes(t.y), f);
}

}  // namespace gan_fast::cuda
