// What one call of Winograd's engine (winograd_conv.cpp) shares between its tasks: phases, chunks of pieces, tiles.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "common/geometry.h"
#include "tile.h"
#include "weights_block.h"
#include "winograd_conv.h"
#include "winograd_plan.h"

namespace gan_fast {
namespace winograd {

constexpr int64_t kTileBytes = 640 * 1024;         // read once per chunk, so it may live behind the transformed pieces
constexpr int64_t kTransformedBytes = 720 * 1024;  // of one chunk: together with one point's sums within a 1 MB L2
constexpr int64_t kSumBytes = 192 * 1024;          // of one chunk, all points of some output blocks
constexpr int64_t kMostPieces = 56;
// The same of F(3x3) and F(4x4), whose pieces are larger: a point's are read once for all output blocks, from wherever they are. Measured
// with two threads: the long ones on Zen 3 and on an Emerald Rapids, the short ones on Zen 4.
struct LargeChunk {
  int64_t transformed_bytes, most_pieces;  // pieces of F(4x4)
};
constexpr LargeChunk kLongChunk{3 * 1024 * 1024, 48}, kShortChunk{1024 * 1024, 28};
// Many weights stream from behind the near cache once per chunk. Then a chunk may be so long that its transformed pieces lie there too;
// they are read once for each group of output blocks, whose sums take more room instead.
constexpr int64_t kManyWeights = 12 << 20;          // bytes
constexpr int64_t kMostFarPieces = 112;
constexpr int64_t kFarSumBytes = 512 * 1024;
constexpr double kFarGain = 0.6;                   // of what streams, at most
constexpr int64_t kFewestPieces = 14;
constexpr int64_t kPanelPad = 48;  // words between points: a weight's are written together, which should not share cache sets
constexpr int64_t kChunkCost = 8;  // in pieces: what a chunk takes besides, mostly to stream the weights

struct Phase {
  const AxisPhase *y, *x;
  std::vector<WinogradFilter> filters;             // one for each plane
  int64_t depth[kMostPoints];                  // channels summed at each point: those of its planes; 0 if the point is dead
  int64_t weights[kMostPoints];                // where the point's panels start, in elements
};

template <class S, class W>
struct Call : TileGrid {
  using T = Arithmetic<S>;
  const ConvGeometry& g;
  const AxisPlan &axis_y, &axis_x;
  const WinogradForm form;
  const std::vector<AxisPiece> along_y, along_x;  // all pieces, whatever tiles they come to lie in: others would round otherwise
  int64_t in_channels, out_channels, lanes, out_blocks;
  int64_t in_blocks;               // of the tile, whose words are floats
  int64_t in_words, word_blocks;   // of the transformed pieces
  std::vector<Phase> phases;
  int64_t weights_per_group;
  bool stream_weights;
  uint64_t plane_points[kMostPlanes];      // points at which each plane is wanted by some phase
  int64_t slot[kMostPoints][kMostPlanes];  // place of a plane among the point's transformed blocks
  int64_t slots[kMostPoints];
  int64_t piece_elements;        // of one transformed piece, all points
  int64_t pieces;                // per chunk
  int64_t sum_bytes;             // of a group of output blocks
  TileLayout layout;

  Call(const ConvGeometry& geometry, const AxisPlan& y, const AxisPlan& x, const WinogradForm& form, int pixels, int vector_bytes,
       int threads);
  void choose_chunk(int pixels, int vector_bytes);
  void choose_tiles(int threads);
  // Of the tiles that fit, takes those that keep the busiest thread for the shortest time.
  void share_out(int64_t most_images, int threads);
  int64_t weight_bytes() const { return weights_per_group * static_cast<int64_t>(sizeof(W)); }

  // The pieces along an axis of a tile that begins, and is as long as, so many outputs of whole pieces.
  PieceRange pieces_in(const std::vector<AxisPiece>& along, int64_t begin, int64_t length) const {
    const int64_t all = static_cast<int64_t>(along.size());
    return {begin / form.outputs, std::min(all, (begin + length) / form.outputs)};
  }
};

template <class S, class W>
Call<S, W>::Call(const ConvGeometry& geometry, const AxisPlan& y_plan, const AxisPlan& x_plan, const WinogradForm& chosen, int pixels,
                 int vector_bytes, int threads)
    : g(geometry), axis_y(y_plan), axis_x(x_plan), form(chosen),
      along_y(cut_axis(y_plan.max_count, chosen.outputs, chosen.lacks_first_y)),
      along_x(cut_axis(x_plan.max_count, chosen.outputs, chosen.lacks_first_x)) {
  in_channels = g.in_channels / g.groups;
  out_channels = g.out_channels / g.groups;
  in_blocks = ceil_div(in_channels, kChannelBlock);
  in_words = ceil_div(in_channels, kPerWord<W>);
  word_blocks = ceil_div(in_words, kChannelBlock);
  lanes = 2 * vector_bytes / static_cast<int64_t>(sizeof(T));
  out_blocks = ceil_div(out_channels, lanes);
  const int64_t planes = axis_y.planes * axis_x.planes;

  std::fill_n(plane_points, kMostPlanes, uint64_t{0});
  for (const AxisPhase& y : axis_y.phases) {
    for (const AxisPhase& x : axis_x.phases) {
      Phase phase{&y, &x, {}, {}, {}};
      for (int64_t plane = 0; plane < planes; ++plane) {
        phase.filters.push_back(winograd_filter(y, plane / axis_x.planes, x, plane % axis_x.planes, g.kernel_w, form.outputs));
        plane_points[plane] |= phase.filters.back().points;
      }
      phases.push_back(std::move(phase));
    }
  }
  piece_elements = 0;
  for (int p = 0; p < form.points(); ++p) {
    slots[p] = 0;
    for (int64_t plane = 0; plane < planes; ++plane) {
      if ((plane_points[plane] >> p & 1) != 0) slot[p][plane] = slots[p]++;
    }
    piece_elements += slots[p] * word_blocks * kChannelBlock;
  }
  weights_per_group = 0;
  for (Phase& phase : phases) {
    for (int p = 0; p < form.points(); ++p) {
      phase.weights[p] = weights_per_group;
      phase.depth[p] = 0;
      for (int64_t plane = 0; plane < planes; ++plane) {
        if (phase.filters[plane].has(p)) phase.depth[p] += in_words;
      }
      weights_per_group += phase.depth[p] * out_blocks * lanes + kPanelPad;
    }
  }

  stream_weights = streams_weights<W>(g.groups * weights_per_group, threads);
  choose_chunk(pixels, vector_bytes);
  choose_tiles(threads);
}

template <class S, class W>
void Call<S, W>::choose_tiles(int threads) {
  const int64_t planes = axis_y.planes * axis_x.planes, per_position = in_blocks * kChannelBlock * planes;
  const auto whole = [&](int64_t n) { return ceil_div(n, form.outputs) * form.outputs; };
  const int64_t halo = most_taps(form.outputs) - 1;
  const auto elements = [&] { return per_position * (tile_t + halo) * (tile_u + halo); };
  // Room for the pieces of a chunk: their positions, and the halo. Of F(3x3) where many weights stream once per chunk.
  const int64_t positions_of_piece = form.outputs == 4   ? 25
                                     : form.outputs == 3 ? (weight_bytes() >= kManyWeights ? 14 : 0)
                                                         : (pieces > kMostPieces ? 6 : 0);
  const int64_t budget = std::max(kTileBytes / static_cast<int64_t>(sizeof(T)), positions_of_piece * pieces * per_position);
  tile_t = whole(axis_y.max_count);
  tile_u = whole(axis_x.max_count);
  while (tile_t > form.outputs && elements() > budget) tile_t = whole(tile_t / 2);
  while (tile_u > 16 && elements() > budget) tile_u = whole(tile_u / 2);
  share_out(tile_t >= axis_y.max_count && tile_u >= axis_x.max_count ? std::max<int64_t>(1, budget / elements()) : 1, threads);
  tiles_n = ceil_div(g.batch, tile_images);
  tiles_t = ceil_div(axis_y.max_count, tile_t);
  tiles_u = ceil_div(axis_x.max_count, tile_u);
  layout = TileLayout(tile_t + halo, tile_u + halo, planes, in_blocks);
}

template <class S, class W>
void Call<S, W>::choose_chunk(int pixels, int vector_bytes) {
  const int64_t piece = piece_elements * static_cast<int64_t>(sizeof(W)), all_weights = weight_bytes();
  if (form.outputs > 2) {
    const LargeChunk& large = vector_bytes == 64 && !roomy_near_cache() ? kShortChunk : kLongChunk;
    pieces = std::clamp(large.transformed_bytes / piece, kFewestPieces, form.outputs == 3 ? kMostPieces : large.most_pieces);
    sum_bytes = kFarSumBytes;
    return;
  }
  pieces = std::clamp(kTransformedBytes / piece / pixels * pixels, kFewestPieces, kMostPieces);
  sum_bytes = kSumBytes;
  const int64_t far_pieces = kMostFarPieces / pixels * pixels;
  const int64_t block_sums = far_pieces * form.points() * lanes * static_cast<int64_t>(sizeof(T));
  const int64_t groups = ceil_div(out_blocks, std::max<int64_t>(1, kFarSumBytes / block_sums));
  const double streamed = static_cast<double>(all_weights) / static_cast<double>(pieces);
  const double streamed_far = static_cast<double>(all_weights) / static_cast<double>(far_pieces) + static_cast<double>(piece * (1 + groups));
  if (all_weights >= kManyWeights && streamed_far < kFarGain * streamed) {
    pieces = far_pieces;
    sum_bytes = kFarSumBytes;
  }
}

template <class S, class W>
void Call<S, W>::share_out(int64_t most_images, int threads) {
  const auto along = [&](int64_t tile, const AxisPlan& axis) { return ceil_div(std::min(tile, axis.max_count), form.outputs); };
  const auto time = [&](int64_t images, int64_t rows) {
    const int64_t held = images * along(rows, axis_y) * along(tile_u, axis_x);
    const int64_t tiles = g.groups * ceil_div(g.batch, images) * ceil_div(axis_y.max_count, rows) * ceil_div(axis_x.max_count, tile_u);
    return busiest_thread(tiles, held + kChunkCost * ceil_div(held, pieces), threads);
  };
  tile_images = least_of(1, std::min(most_images, g.batch), [&](int64_t images) { return time(images, tile_t); });
  for (int64_t rows = tile_t; tile_images == 1 && rows > form.outputs;) {
    rows = ceil_div(rows / 2, form.outputs) * form.outputs;
    if (time(1, rows) < time(1, tile_t)) tile_t = rows;
  }
}

}  // namespace winograd
}  // namespace gan_fast
