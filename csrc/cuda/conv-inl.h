// The convolution to few channels, for one block of threads; conv_plan.h says what a block does. M: Device, or the tests' machine.
#pragma once

#include "activate.h"
#include "conv_plan.h"
#include "products.h"

namespace gan_fast::cuda {

// Words of 16 bytes of one pixel's channels from `first` on; 0 beyond the last. Aligned: every chunk lies on 16 bytes.
template <Product P, bool Aligned, class M>
GF_DEVICE Chunk load_channels(M& m, const Element<P>* pixel, int first, int channels) {
  if (pixel == nullptr || first >= channels) return {{0, 0, 0, 0}};
  if constexpr (Aligned) {
    return m.load_chunk(pixel + first);
  } else {
    Chunk found{{0, 0, 0, 0}};
    GF_UNROLL
    for (int i = 0; i < kPerChunk<P>; ++i) {
      const uint32_t bits = first + i < channels ? m.load(pixel + first + i) : 0;
      found.word[i / kPerWord<P>] |= bits << (i % kPerWord<P> * 16);
    }
    return found;
  }
}

// Words as the matrix unit takes them.
template <Product P, class M>
GF_DEVICE Chunk as_operand(M& m, Chunk c) {
  if constexpr (P == kTf32) {
    GF_UNROLL
    for (int i = 0; i < 4; ++i) c.word[i] = m.round_to_tf32(c.word[i]);
  }
  return c;
}

// Columns of a pass and its blocks of channels.
struct Pass {
  int column, block, blocks;
};

// The weights of a pass in the order in which warps read them: one chunk for each thread, tile of columns and block.
template <Product P, int Tiles, bool Aligned, class M>
GF_DEVICE void pack_weights(M& m, const ConvPlan& p, const ConvTensors& t, const Pass& pass, Chunk* packed) {
  m.threads([&](int thread) {
    for (int i = thread; i < pass.blocks * Tiles * kWarp; i += kThreads) {
      const int lane = i % kWarp, tile = i / kWarp % Tiles, block = i / (kWarp * Tiles);
      const int column = pass.column + tile * kColumns + lane_group(lane);
      const int first = ((pass.block + block) * 4 + lane_place(lane)) * kPerChunk<P>;
      const auto* w = static_cast<const Element<P>*>(t.w);
      const auto* row = column < p.columns ? w + static_cast<int64_t>(column) * p.in_channels : nullptr;
      m.store_chunk(packed + i, as_operand<P>(m, load_channels<P, Aligned>(m, row, first, p.in_channels)));
    }
  });
}

// A thread's part of two tiles of 16 pixels: their channels in the order of the operand A, and their sums.
struct Pixels {
  uint32_t word[2][2][4];  // tile; first or second half of a chunk; as products.h says
};
template <Product P, int Tiles>
struct Sums {
  float matrix[2][Tiles][4];
};
template <int Tiles>  // Without the matrix unit a thread sums over its own channels only, for its rows and all columns.
struct Sums<kIeee, Tiles> {
  float partial[4][Tiles * kColumns];
};

template <Product P, int Tiles, class M, class SumsOf, class PixelsOf>
GF_DEVICE void multiply_block(M& m, int warp, SumsOf& sums, PixelsOf& pixels, const Chunk* packed) {
  if constexpr (P != kIeee) {
    GF_UNROLL
    for (int tile = 0; tile < Tiles; ++tile) {
      typename M::template PerThread<Chunk> weights;
      m.lanes(warp, [&](int lane, int thread) { weights[thread] = packed[tile * kWarp + lane]; });
      GF_UNROLL
      for (int half = 0; half < 2; ++half) {
        GF_UNROLL
        for (int part = 0; part < 2; ++part) {
          m.template multiply<P>(
              warp, [&](int thread) { return sums[thread].matrix[part][tile]; },
              [&](int thread) { return pixels[thread].word[part][half]; },
              [&](int thread) { return weights[thread].word + 2 * half; });
        }
      }
    }
  } else {
    m.lanes(warp, [&](int lane, int thread) {
      GF_UNROLL
      for (int column = 0; column < Tiles * kColumns; ++column) {
        const int holder = column % kColumns * 4 + lane_place(lane);
        const Chunk weights = packed[column / kColumns * kWarp + holder];
        GF_UNROLL
        for (int row = 0; row < 4; ++row) {
          GF_UNROLL
          for (int i = 0; i < 4; ++i) {
            const uint32_t x = pixels[thread].word[row / 2][i / 2][row % 2 + i % 2 * 2];
            float& sum = sums[thread].partial[row][column];
            sum = fmaf(m.as_float(x), m.as_float(weights.word[i]), sum);
          }
        }
      }
    });
  }
}

// Z of a slice's pixels, in shared memory column by column: `rows` rows of the image from `row` on, `patch.columns` wide.
template <Product P, int Tiles, bool Aligned, class M>
GF_DEVICE void multiply_slice(M& m, const ConvPlan& p, const Element<P>* image, const Patch& patch, int row, int rows,
                              const Pass& pass, const Chunk* packed, float* z) {
  const int count = rows * patch.columns;
  m.warps([&](int warp) {
    for (int first = warp * 2 * kRows; first < count; first += kWarps * 2 * kRows) {
      typename M::template PerThread<Sums<P, Tiles>> sums;
      typename M::template PerThread<int> places[4];  // of the pixels of rows group, group + 8, ... in the image, or -1
      m.lanes(warp, [&](int lane, int thread) {
        sums[thread] = {};
        GF_UNROLL
        for (int i = 0; i < 4; ++i) {
          const int pixel = first + i * kColumns + lane_group(lane);
          const int y = row + pixel / patch.columns, x = patch.column + pixel % patch.columns;
          places[i][thread] = pixel < count ? (y * p.in_w + x) * p.in_channels : -1;
        }
      });
      GF_ROLLED  // unrolled it spills; two blocks on a multiprocessor have 16 warps, whose loads hide each other
      for (int block = 0; block < pass.blocks; ++block) {
        typename M::template PerThread<Pixels> pixels;
        m.lanes(warp, [&](int lane, int thread) {
          const int channel = ((pass.block + block) * 4 + lane_place(lane)) * kPerChunk<P>;
          GF_UNROLL
          for (int i = 0; i < 4; ++i) {
            const int place = places[i][thread];
            const auto* pixel = place < 0 ? nullptr : image + place;
            const Chunk c = as_operand<P>(m, load_channels<P, Aligned>(m, pixel, channel, p.in_channels));
            GF_UNROLL
            for (int j = 0; j < 4; ++j) pixels[thread].word[i / 2][j / 2][i % 2 + j % 2 * 2] = c.word[j];
          }
        });
        multiply_block<P, Tiles>(m, warp, sums, pixels, packed + block * Tiles * kWarp);
      }
      if constexpr (P != kIeee) {
        m.lanes(warp, [&](int lane, int thread) {
          GF_UNROLL
          for (int part = 0; part < 2; ++part) {
            GF_UNROLL
            for (int tile = 0; tile < Tiles; ++tile) {
              GF_UNROLL
              for (int i = 0; i < 4; ++i) {
                const int column = tile * kColumns + 2 * lane_place(lane) + i % 2;
                const int pixel = first + part * kRows + lane_group(lane) + i / 2 * kColumns;
                z[column * p.slice_stride + pixel] = sums[thread].matrix[part][tile][i];
              }
            }
          }
        });
      } else {
        GF_UNROLL
        for (int i = 0; i < 4; ++i) {
          GF_UNROLL
          for (int column = 0; column < Tiles * kColumns; ++column) {
            m.sum_over_group(warp, [&](int thread) -> float& { return sums[thread].partial[i][column]; });
            m.lanes(warp, [&](int lane, int thread) {
              const int pixel = first + i * kColumns + lane_group(lane);
              if (lane_place(lane) == column % 4) z[column * p.slice_stride + pixel] = sums[thread].partial[i][column];
            });
          }
        }
      }
    }
  });
}

// Adds to every output's sum what a slice has for it, in the order of the taps.
template <int Tiles, class M>
GF_DEVICE void add_slice(M& m, const ConvPlan& p, const Patch& patch, int out_row, int out_rows, int out_column, int out_columns,
                         int row, int rows, int first_column, const float* z, float* total) {
  m.threads([&](int thread) {
    for (int i = thread; i < out_rows * out_columns * p.out_channels; i += kThreads) {
      const int o = i % p.out_channels, position = i / p.out_channels;
      const int top = (out_row + position / out_columns) * p.stride_h - p.pad_h - row;
      const int left = (out_column + position % out_columns) * p.stride_w - p.pad_w - patch.column;
      float sum = total[i];
      for (int ky = 0; ky < p.kernel_h; ++ky) {
        const int y = top + ky * p.dilation_h;
        if (y < 0 || y >= rows) continue;
        const int column = (o * p.kernel_h + ky) * p.kernel_w - first_column;
        for (int kx = 0; kx < p.kernel_w; ++kx) {
          const int x = left + kx * p.dilation_w;
          if (x < 0 || x >= patch.columns || column + kx < 0 || column + kx >= Tiles * kColumns) continue;
          sum += z[(column + kx) * p.slice_stride + y * patch.columns + x];
        }
      }
      total[i] = sum;
    }
  });
}

template <Product P, int Tiles, bool Aligned, class M>
GF_DEVICE void conv_block(M& m, const ConvPlan& p, const ConvTensors& t, int block, void* shared) {
  const int tile_x = block % p.tiles_x, tile_y = block / p.tiles_x % p.tiles_y, image = block / (p.tiles_x * p.tiles_y);
  const int out_row = tile_y * p.tile_h, out_rows = lesser(p.tile_h, p.out_h - out_row);
  const int out_column = tile_x * p.tile_w, out_columns = lesser(p.tile_w, p.out_w - out_column);
  const Patch patch = patch_of(p, out_row, out_rows, out_column, out_columns);
  const auto* x = static_cast<const Element<P>*>(t.x) + static_cast<int64_t>(image) * p.in_h * p.in_w * p.in_channels;
  auto* packed = static_cast<Chunk*>(shared);
  float* z = reinterpret_cast<float*>(packed + lesser(p.blocks, kPassBlocks) * Tiles * kWarp);
  float* total = z + Tiles * kColumns * p.slice_stride;
  const int outputs = out_rows * out_columns * p.out_channels;
  m.threads([&](int thread) {
    for (int i = thread; i < outputs; i += kThreads) total[i] = 0.0f;
  });
  for (int column = 0; column < p.columns; column += Tiles * kColumns) {
    for (int first = 0; first < p.blocks; first += kPassBlocks) {
      const Pass pass{column, first, lesser(kPassBlocks, p.blocks - first)};
      pack_weights<P, Tiles, Aligned>(m, p, t, pass, packed);
      m.sync();
      for (int row = patch.row; row < patch.row + patch.rows; row += p.slice_rows) {
        const int rows = lesser(p.slice_rows, patch.row + patch.rows - row);
        multiply_slice<P, Tiles, Aligned>(m, p, x, patch, row, rows, pass, packed, z);
        m.sync();
        add_slice<Tiles>(m, p, patch, out_row, out_rows, out_column, out_columns, row, rows, column, z, total);
        m.sync();
      }
    }
  }
  m.threads([&](int thread) {
    for (int i = thread; i < outputs; i += kThreads) {
      const int o = i % p.out_channels, position = i / p.out_channels;
      float sum = total[i];
      if (t.bias != nullptr) sum += m.template widen<P>(m.load(static_cast<const Element<P>*>(t.bias) + o));
      const int64_t row = static_cast<int64_t>(image) * p.out_h + out_row + position / out_columns;
      const int64_t target = (row * p.out_w + out_column + position % out_columns) * p.out_channels + o;
      m.store(static_cast<Element<P>*>(t.y) + target, m.template narrow<P>(activate(sum, t.activation, t.slope)));
    }
  });
}

// f(product, tiles of columns, aligned) with the constants of the kernel that serves a plan.
template <class F>
void with_conv_kernel(const ConvPlan& p, const ConvTensors& t, Product product, F f) {
  const bool aligned = in_chunks(p.in_channels, product) && on_16_bytes(t.x) && on_16_bytes(t.w);
  with_kernel<4, 7>(product, conv_column_tiles(p, product), aligned, f);
}

}  // namespace gan_fast::cuda
