#include "tile.h"

#include <algorithm>

namespace gan_fast {
namespace {

constexpr int64_t kPlanePad = 16;  // elements; keeps plane strides off multiples of 4 KB, which would share L1 sets

}  // namespace

TileLayout::TileLayout(int64_t rows, int64_t columns, int64_t planes, int64_t in_blocks)
    : rows(rows), columns(columns), row_pixels(columns), planes(planes) {
  plane_stride = rows * columns * kChannelBlock + kPlanePad;
  block_stride = planes * plane_stride;
  image_stride = in_blocks * block_stride;
}

RowLayout::RowLayout(int64_t rows, int64_t columns, int64_t channels) : rows(rows), columns(columns) {
  row_stride = columns * channels;
  image_stride = rows * row_stride;
}

TilePlace TileGrid::place(int64_t index, int64_t batch) const {
  TilePlace place{};
  place.u = index % tiles_u * tile_u;
  index /= tiles_u;
  place.t = index % tiles_t * tile_t;
  index /= tiles_t;
  place.image = index % tiles_n * tile_images;
  place.group = index / tiles_n;
  place.images = std::min(tile_images, batch - place.image);
  return place;
}

TileGrid choose_tiles(const ConvGeometry& g, const AxisPlan& axis_y, const AxisPlan& axis_x, int64_t per_position, int64_t budget,
                      int64_t pixels, int64_t tile_cost, int threads) {
  TileGrid tiles{};
  tiles.tile_t = axis_y.max_count;
  tiles.tile_u = axis_x.max_count;
  const auto size = [&] { return per_position * (tiles.tile_t + axis_y.span - 1) * (tiles.tile_u + axis_x.span - 1); };
  if (size() > budget && tiles.tile_t > 1) {
    const int64_t row = per_position * (tiles.tile_u + axis_x.span - 1);
    tiles.tile_t = std::max<int64_t>(1, budget / std::max<int64_t>(row, 1) - axis_y.span + 1);
    tiles.tile_t = ceil_div(axis_y.max_count, ceil_div(axis_y.max_count, tiles.tile_t));  // even shares
  }
  if (size() > budget) {
    const int64_t column = per_position * (tiles.tile_t + axis_y.span - 1);
    const int64_t fitting = budget / std::max<int64_t>(column, 1) - axis_x.span + 1;
    tiles.tile_u = std::min(tiles.tile_u, std::max(pixels, fitting / pixels * pixels));
  }
  if (axis_y.max_count == 1) tiles.tile_u = share_columns(g, axis_x, tiles.tile_u, pixels, threads);
  tiles.tile_images = 1;
  if (tiles.tile_t == axis_y.max_count && tiles.tile_u == axis_x.max_count) {
    const int64_t fitting = std::max<int64_t>(1, budget / std::max<int64_t>(size(), 1));
    const int64_t first = std::min(fitting, std::max<int64_t>(1, g.batch / (4 * std::max(threads, 1))));
    tiles.tile_images = least_of(first, std::min(fitting, g.batch), [&](int64_t images) {
      return busiest_thread(ceil_div(g.batch, images), images * axis_y.max_count * axis_x.max_count + tile_cost, threads);
    });
  }
  tiles.tiles_n = ceil_div(g.batch, tiles.tile_images);
  tiles.tiles_t = ceil_div(axis_y.max_count, tiles.tile_t);
  tiles.tiles_u = ceil_div(axis_x.max_count, tiles.tile_u);
  return tiles;
}

int64_t share_columns(const ConvGeometry& g, const AxisPlan& axis_x, int64_t most, int64_t unit, int threads) {
  constexpr int64_t kFewest = 64, kFewestSpans = 8;
  const int64_t count = axis_x.max_count;
  int64_t tiles = ceil_div(count, std::max<int64_t>(most, 1));
  if (threads > 1 && g.in_w >= g.kernel_h * g.kernel_w * (g.out_channels / g.groups)) {
    const int64_t wanted = ceil_div(2 * static_cast<int64_t>(threads), std::max<int64_t>(g.groups * g.batch, 1));
    tiles = std::max(tiles, std::min(wanted, count / std::max(kFewest, kFewestSpans * (axis_x.span - 1))));
  }
  return std::min(count, ceil_div(ceil_div(count, std::max<int64_t>(tiles, 1)), unit) * unit);
}

int64_t output_splits(int64_t tiles, int64_t out_blocks, int threads) {
  const int64_t wanted = 2 * static_cast<int64_t>(std::max(threads, 1));
  return threads == 1 || tiles >= wanted ? 1 : std::min(out_blocks, ceil_div(wanted, tiles));
}

template <class S, class W>
void pack_tile_row(const ConvGeometry& g, const AxisPlan& axis_y, const AxisPlan& axis_x, const TileLayout& layout, const TilePlace& place,
                   int64_t image, int64_t r, const S* x, const Prologue& prologue, void (*pack_row)(const PackRow<S, W>&), W* packed) {
  const int64_t channels = g.in_channels / g.groups;
  const int64_t row_elements = g.in_w * g.in_channels;
  const S* y = static_cast<const S*>(prologue.y);
  PackRow<S, W> row{};
  row.pixel_stride = g.in_channels;
  row.step = axis_x.planes;
  row.width = g.in_w;
  row.columns = layout.columns;
  row.channels = channels;
  row.pixel = layout.pixel;
  row.block_stride = layout.block_stride;
  row.parts = layout.parts;
  row.prologue_activation = prologue.activation;
  row.prologue_slope = static_cast<Arithmetic<S>>(prologue.slope);
  // Input rows in the order in which they lie in memory; the planes of a row share its lines.
  for (int64_t plane = 0; plane < layout.planes; ++plane) {
    const int64_t py = plane / axis_x.planes, px = plane % axis_x.planes;
    const int64_t in_row = (place.t + r) * axis_y.planes + py - axis_y.lead;
    const bool inside = in_row >= 0 && in_row < g.in_h;
    const int64_t offset = ((place.image + image) * g.in_h + in_row) * row_elements + place.group * channels;
    row.first = place.u * axis_x.planes + px - axis_x.lead;
    row.input = inside ? x + offset : nullptr;
    row.prologue_y = y == nullptr || !inside ? nullptr : y + offset;
    row.tile = packed + plane * layout.plane_stride;
    pack_row(row);
  }
}

template <class S, class W>
void pack_tile(const ConvGeometry& g, const AxisPlan& axis_y, const AxisPlan& axis_x, const TileLayout& layout,
               const TilePlace& place, const S* x, const Prologue& prologue, void (*pack_row)(const PackRow<S, W>&), W* packed) {
  for (int64_t n = 0; n < place.images; ++n) {
    for (int64_t r = 0; r < layout.rows; ++r) {
      pack_tile_row(g, axis_y, axis_x, layout, place, n, r, x, prologue, pack_row,
                    packed + n * layout.image_stride + r * layout.row_pixels * layout.pixel);
    }
  }
}

template <class S, class T>
void pack_rows(const ConvGeometry& g, const AxisPlan& axis_y, const AxisPlan& axis_x, const RowLayout& layout, const TilePlace& place,
               const S* x, const Prologue& prologue, void (*pack_line)(const PackLine<S, T>&), T* packed) {
  const int64_t channels = g.in_channels;
  const int64_t first = place.u * axis_x.planes - axis_x.lead;  // input column of the tile's first
  const int64_t begin = std::clamp<int64_t>(-first, 0, layout.columns), end = std::clamp<int64_t>(g.in_w - first, begin, layout.columns);
  PackLine<S, T> line{};
  line.n = (end - begin) * channels;
  line.prologue_activation = prologue.activation;
  line.prologue_slope = static_cast<Arithmetic<S>>(prologue.slope);
  for (int64_t n = 0; n < place.images; ++n) {
    for (int64_t r = 0; r < layout.rows; ++r) {
      T* const row = packed + n * layout.image_stride + r * layout.row_stride;
      const int64_t in_row = place.t * axis_y.planes + r - axis_y.lead;
      if (in_row < 0 || in_row >= g.in_h || begin == end) {
        std::fill_n(row, layout.row_stride, T{});
        continue;
      }
      const int64_t from = (((place.image + n) * g.in_h + in_row) * g.in_w + first + begin) * channels;
      std::fill_n(row, begin * channels, T{});
      line.input = x + from;
      line.prologue_y = prologue.y == nullptr ? nullptr : static_cast<const S*>(prologue.y) + from;
      line.out = row + begin * channels;
      pack_line(line);
      std::fill_n(row + end * channels, (layout.columns - end) * channels, T{});
    }
  }
}

#define GAN_FAST_TILE_ROW(S, W)                                                                                                     \
  template void pack_tile_row<S, W>(const ConvGeometry&, const AxisPlan&, const AxisPlan&, const TileLayout&, const TilePlace&,     \
                                    int64_t, int64_t, const S*, const Prologue&, void (*)(const PackRow<S, W>&), W*);
GAN_FAST_TILE_ROW(float, float)
GAN_FAST_TILE_ROW(Bf16, float)
GAN_FAST_TILE_ROW(double, double)
GAN_FAST_TILE_ROW(Bf16, Bf16Pair)
GAN_FAST_TILE_ROW(float, Bf16Pair)
#define GAN_FAST_TILE(S, W)                                                                                                         \
  template void pack_tile<S, W>(const ConvGeometry&, const AxisPlan&, const AxisPlan&, const TileLayout&, const TilePlace&,         \
                                const S*, const Prologue&, void (*)(const PackRow<S, W>&), W*);                                     \
  template void pack_rows<S, Element<W>>(const ConvGeometry&, const AxisPlan&, const AxisPlan&, const RowLayout&, const TilePlace&, \
                                         const S*, const Prologue&, void (*)(const PackLine<S, Element<W>>&), Element<W>*);
GAN_FAST_TILE(float, float)
GAN_FAST_TILE(Bf16, float)
GAN_FAST_TILE(double, double)
GAN_FAST_TILE(Bf16, Bf16Pair)
template void pack_tile<float, Bf16Pair>(const ConvGeometry&, const AxisPlan&, const AxisPlan&, const TileLayout&, const TilePlace&,
                                         const float*, const Prologue&, void (*)(const PackRow<float, Bf16Pair>&), Bf16Pair*);

}  // namespace gan_fast
