// The packed copy of a piece of the input that the gather engines work on: [image][channel block][plane][row][column][channel],
// zero-padded, so that inner loops have no edges and a constant pixel stride.
#pragma once

#include <algorithm>
#include <cstdint>

#include "ahead.h"
#include "common/geometry.h"
#include "common/parallel.h"
#include "gather_conv.h"
#include "gather_plan.h"

namespace gan_fast {

struct TileLayout {
  int64_t rows, columns;  // packed positions of a plane
  int64_t row_pixels;     // from a row to the next; fewer than columns where zeros at a row's end are those at the next one's beginning
  int64_t planes;
  int64_t pixel = kChannelBlock;  // from a position of a row to the next
  int64_t plane_stride, block_stride, image_stride;
  Parts parts{};  // as in PackRow

  TileLayout() = default;
  TileLayout(int64_t rows, int64_t columns, int64_t planes, int64_t in_blocks);
};

// A tile of few input channels: the input's own rows, [image][row][column][channel], zero-padded. The taps of a kernel row lie side
// by side in it, and no channel block is mostly empty.
struct RowLayout {
  int64_t rows, columns;  // of the input
  int64_t row_stride, image_stride;

  RowLayout() = default;
  RowLayout(int64_t rows, int64_t columns, int64_t channels);
};

// One task's place: images, and the first phase row and column.
struct TilePlace {
  int64_t group, image, images, t, u;
};

// A call's tiles: images x phase rows x phase columns, cut from `tiles_n` x `tiles_t` x `tiles_u` of them.
struct TileGrid {
  int64_t tile_images, tile_t, tile_u;
  int64_t tiles_n, tiles_t, tiles_u;

  int64_t count(int64_t groups) const { return groups * tiles_n * tiles_t * tiles_u; }
  TilePlace place(int64_t index, int64_t batch) const;
};

// What the thread with most to do has to do, of so many tiles that each take so long.
inline int64_t busiest_thread(int64_t tiles, int64_t time_of_tile, int threads) {
  return ceil_div(tiles, std::max(threads, 1)) * time_of_tile;
}

// The first of the numbers from `first` to `last` for which `time` is least; `first` if there are none.
template <class Time>
int64_t least_of(int64_t first, int64_t last, const Time& time) {
  int64_t best = first, least = time(first);
  for (int64_t n = first + 1; n <= last; ++n) {
    const int64_t here = time(n);
    if (here >= least) continue;
    least = here;
    best = n;
  }
  return best;
}

// Tiles whose packed input, of `per_position` elements, fits the budget: bands of rows, or several whole images as long as no thread would
// be idle; more of them where a tile costs as much as `tile_cost` positions besides. Columns are cut at multiples of a register block's
// pixels.
TileGrid choose_tiles(const ConvGeometry& geometry, const AxisPlan& axis_y, const AxisPlan& axis_x, int64_t per_position, int64_t budget,
                      int64_t pixels, int64_t tile_cost, int threads);

// Whether an output is so large that it leaves the cache before anything reads it, and its lines begin pixels: then it is better
// stored around the cache.
template <class S>
bool leaves_cache(const ConvGeometry& g, const S* y) {
  constexpr int64_t kLeavesCache = 16 << 20, kLine = 64;
  const int64_t pixel = g.out_channels * static_cast<int64_t>(sizeof(S));
  return g.groups == 1 && pixel % kLine == 0 && reinterpret_cast<uintptr_t>(y) % kLine == 0 &&
         g.batch * g.out_h * g.out_w * pixel >= kLeavesCache;
}

// Columns of a tile of a sound or another image of one row: even shares, multiples of `unit`, of at most so many. More tiles, so that no
// thread is idle, where weights are few beside the input: each tile reads all of them. None so short that what its taps read besides counts.
// Tasks that share a tile instead, with some of the output channels each, pack it anew: 64 -> 32 channels, kernel 4, stride 2, 4096 positions
// took half as long again.
int64_t share_columns(const ConvGeometry& geometry, const AxisPlan& axis_x, int64_t most, int64_t unit, int threads);

// Few tiles: several tasks share one tile's output channels (each packs the tile again; results do not depend on it).
int64_t output_splits(int64_t tiles, int64_t out_blocks, int threads);

// Who packs which weights: threads that share tiles read those of their own output channels, others read all of them in one order.
inline Shares shares_of_weights(int64_t splits) { return splits > 1 ? Shares::kNeighbours : Shares::kInterleaved; }

// Copies the place's input, times act'(prologue.y), into `packed`.
template <class S, class W>
void pack_tile(const ConvGeometry& geometry, const AxisPlan& axis_y, const AxisPlan& axis_x, const TileLayout& layout,
               const TilePlace& place, const S* x, const Prologue& prologue, void (*pack_row)(const PackRow<S, W>&), W* packed);

// One row of one of the place's images, of all planes: row r of each begins at `packed`, apart from the plane's stride.
template <class S, class W>
void pack_tile_row(const ConvGeometry& geometry, const AxisPlan& axis_y, const AxisPlan& axis_x, const TileLayout& layout,
                   const TilePlace& place, int64_t image, int64_t r, const S* x, const Prologue& prologue,
                   void (*pack_row)(const PackRow<S, W>&), W* packed);

// Adds what pack_tile will read for a place to what is fetched ahead, where that lies in one piece.
template <class S>
void fetch_tile(Ahead& ahead, const ConvGeometry& g, const AxisPlan& axis_y, const TilePlace& place, int64_t tile_t, bool whole_rows,
                const S* x, const Prologue& prologue) {
  if (g.groups != 1 || !whole_rows) return;
  const int64_t row = g.in_w * g.in_channels, phase_rows = axis_y.max_count;
  const double scale = static_cast<double>(g.in_h) / static_cast<double>(phase_rows);  // sizes have 40 bits, their product does not fit
  const auto input_row = [&](int64_t t) { return static_cast<int64_t>(static_cast<double>(t) * scale); };
  const int64_t first = input_row(place.t), last = input_row(std::min(place.t + tile_t, phase_rows));
  const int64_t begin = (place.image * g.in_h + first) * row, end = ((place.image + place.images - 1) * g.in_h + last) * row;
  ahead.add(x + begin, (end - begin) * static_cast<int64_t>(sizeof(S)));
  if (prologue.y != nullptr) ahead.add(static_cast<const S*>(prologue.y) + begin, (end - begin) * static_cast<int64_t>(sizeof(S)));
}

// The same for a tile of rows of T, what its words are made of; all groups' channels together.
template <class S, class T>
void pack_rows(const ConvGeometry& geometry, const AxisPlan& axis_y, const AxisPlan& axis_x, const RowLayout& layout,
               const TilePlace& place, const S* x, const Prologue& prologue, void (*pack_line)(const PackLine<S, T>&),
               T* packed);

// Copies a bias (groups * channels) so that each group takes `padded` elements, zeros behind.
template <class S>
void pad_bias(const S* bias, int64_t groups, int64_t channels, int64_t padded, Arithmetic<S>* out) {
  for (int64_t group = 0; group < groups; ++group) {
    for (int64_t c = 0; c < padded; ++c) {
      out[group * padded + c] = c < channels ? widen(bias[group * channels + c]) : Arithmetic<S>(0);
    }
  }
}

}  // namespace gan_fast
