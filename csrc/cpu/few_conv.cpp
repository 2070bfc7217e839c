#include "few_conv.h"

#include <algorithm>
#include <vector>

#include "ahead.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "pair_kernels.h"
#include "tile.h"

namespace gan_fast {
namespace {

// Rows of a tile, as if all were packed: what the ring leaves of a tile is less, and the input's own lines pass through the near cache.
constexpr int64_t kTileBytes = 640 * 1024;

constexpr int64_t kLeastSpan = 4;

// Taps side by side.
struct Group {
  int64_t plane, dy, dx;  // of the first
  int64_t weights;        // as in FewTapGroup
  int taps;
};

struct Phase {
  const AxisPhase *y, *x;
  std::vector<Tap> taps;
  std::vector<Group> groups;
  int64_t weights;  // where they begin
};

template <class S, class W>
struct Call : TileGrid {
  const ConvGeometry& g;
  const GatherEngine<S, W> engine;
  const AxisPlan &axis_y, &axis_x;
  int64_t in_channels, out_channels;  // per group
  int64_t in_words, in_blocks;        // that the input channels fill
  TileLayout layout;                  // of the ring
  int64_t tile_elements;
  std::vector<Phase> phases;
  int64_t weights_per_group;
  int64_t tile_groups;  // of one row
  bool in_place;        // the input is read where it lies: its pixels are whole blocks of words

  Call(const ConvGeometry& geometry, const AxisPlan& y_plan, const AxisPlan& x_plan, bool as_stored, int threads);
};

template <class S, class W>
Call<S, W>::Call(const ConvGeometry& geometry, const AxisPlan& y_plan, const AxisPlan& x_plan, bool as_stored, int threads)
    : g(geometry), engine(gather_engine<S, W>()), axis_y(y_plan), axis_x(x_plan) {
  in_channels = g.in_channels / g.groups;
  out_channels = g.out_channels / g.groups;
  in_words = ceil_div(in_channels, kPerWord<W>);
  in_blocks = ceil_div(in_words, kChannelBlock);
  // Few neighbouring taps: a pixel is read again for each of them, and a packed one is nearer.
  in_place = as_stored && axis_x.span >= kLeastSpan && sizeof(W) == kPerWord<W> * sizeof(S) &&
             in_channels % (kPerWord<W> * kChannelBlock) == 0;
  const int64_t planes = axis_y.planes * axis_x.planes;
  static_cast<TileGrid&>(*this) = choose_tiles(g, axis_y, axis_x, in_blocks * kChannelBlock * planes,
                                               kTileBytes / static_cast<int64_t>(sizeof(W)), engine.pixels, 0, threads);
  layout = TileLayout(axis_y.span, tile_u + axis_x.span - 1, planes, in_blocks);
  // Segments may read past the last row.
  tile_elements = in_place ? in_blocks * kChannelBlock : layout.image_stride + 2 * engine.few_pixels_wide * kChannelBlock;
  weights_per_group = tile_groups = 0;
  for (const AxisPhase& y : axis_y.phases) {
    for (const AxisPhase& x : axis_x.phases) {
      Phase phase{&y, &x, phase_taps(y, x, axis_x.planes, g.kernel_w), {}, weights_per_group};
      for (std::size_t i = 0; i < phase.taps.size(); ++i) {
        const Tap& tap = phase.taps[i];
        const bool joins = i > 0 && phase.groups.back().taps < kFewTaps && phase.taps[i - 1].plane == tap.plane &&
                           phase.taps[i - 1].dy == tap.dy && phase.taps[i - 1].dx + 1 == tap.dx;
        if (joins) {
          ++phase.groups.back().taps;
        } else {
          phase.groups.push_back({tap.plane, tap.dy, tap.dx, static_cast<int64_t>(i) * in_blocks * kChannelBlock, 1});
        }
      }
      tile_groups += static_cast<int64_t>(phase.groups.size());
      weights_per_group += out_channels * static_cast<int64_t>(phase.taps.size()) * in_blocks * kChannelBlock;
      phases.push_back(std::move(phase));
    }
  }
}

// [phase][output channel][group of taps][channel block][tap][word]
template <class S, class W>
void pack_weights(const Call<S, W>& call, const WeightStrides& strides, const S* weight, W* packed, int threads) {
  parallel_tasks(call.g.groups * call.in_blocks, threads, Shares::kInterleaved, [&](int64_t task) {
    const int64_t block = task % call.in_blocks, group = task / call.in_blocks;
    const int64_t words = std::min(kChannelBlock, call.in_words - block * kChannelBlock);
    const int64_t first = block * kChannelBlock * kPerWord<W>;
    const S* from = weight + group * strides.group + first * strides.in;
    for (const Phase& phase : call.phases) {
      for (int64_t o = 0; o < call.out_channels; ++o) {
        W* const base = packed + group * call.weights_per_group + phase.weights +
                        o * static_cast<int64_t>(phase.taps.size()) * call.in_blocks * kChannelBlock;
        const Tap* next = phase.taps.data();
        for (const Group& tap_group : phase.groups) {
          for (int64_t k = 0; k < tap_group.taps; ++k) {
            W* const out = base + tap_group.weights + (block * tap_group.taps + k) * kChannelBlock;
            const S* tap = from + o * strides.out + (next++)->kernel * strides.tap;
            const auto channel = [&](int64_t c) { return first + c < call.in_channels ? tap[c * strides.in] : S{}; };
            for (int64_t w = 0; w < kChannelBlock; ++w) {
              out[w] = w < words ? word_of<W>(channel(w * kPerWord<W>), channel(w * kPerWord<W> + kPerWord<W> - 1)) : W(0);
            }
          }
        }
      }
    }
  });
}

// One phase's pixels in a row of output: wide segments, and one of half their length where no more is left. The last may be shorter.
struct Segments {
  std::vector<int64_t> in, valid;
  int64_t wide;  // how many are

  Segments(int64_t width, int64_t pixels_wide) {
    const int64_t half = pixels_wide / 2, rest = width % pixels_wide;
    wide = width / pixels_wide + (rest > half ? 1 : 0);
    for (int64_t u = 0; u < width; u += pixels_wide) {
      in.push_back(u);
      valid.push_back(std::min(pixels_wide, width - u));
    }
  }
};

// What changes from row to row, kept for its memory.
template <class W>
struct Row {
  std::vector<int64_t> in, out;
  std::vector<FewTapGroup<W>> groups;
};

// Row t of output reads rows of the ring.
template <class S, class W>
void read_ring(const Call<S, W>& call, const Phase& phase, int64_t t, const Segments& segments, const W* ring, Row<W>& row,
               FewJob<S, W>& job) {
  row.in = segments.in;
  row.groups.clear();
  for (const Group& group : phase.groups) {
    const int64_t place = (t + group.dy) % call.layout.rows * call.layout.columns * kChannelBlock;
    row.groups.push_back({ring + group.plane * call.layout.plane_stride + place, group.dx, group.weights, group.taps});
  }
  job.packed = true;
  job.block_stride = call.layout.block_stride;
}

// Row t of output reads the input's own rows. Rows outside are left out, columns outside are zeros.
template <class S, class W>
void read_in_place(const Call<S, W>& call, const TilePlace& place, const Phase& phase, int64_t image, int64_t t, const Segments& segments,
                   const S* x, const W* zeros, Row<W>& row, FewJob<S, W>& job) {
  const ConvGeometry& g = call.g;
  const int64_t planes_y = call.axis_y.planes, planes_x = call.axis_x.planes;
  row.in.clear();
  for (const int64_t u : segments.in) row.in.push_back((place.u + u) * planes_x);
  row.groups.clear();
  for (const Group& group : phase.groups) {
    const int64_t in_row = (place.t + t + group.dy) * planes_y + group.plane / planes_x - call.axis_y.lead;
    if (in_row < 0 || in_row >= g.in_h) continue;
    const S* from = x + ((place.image + image) * g.in_h + in_row) * g.in_w * g.in_channels + place.group * call.in_channels;
    const int64_t column = group.dx * planes_x + group.plane % planes_x - call.axis_x.lead;
    row.groups.push_back({reinterpret_cast<const W*>(from), column, group.weights, group.taps});
  }
  job.columns = g.in_w;
  job.column_step = planes_x;
  job.column_stride = g.in_channels / kPerWord<W>;
  job.zeros = zeros;
  job.block_stride = kChannelBlock;
}

// Row t of a phase of one of the tile's images. `job` and `row` say what it reads.
template <class S, class W>
void run_row(const Call<S, W>& call, const TilePlace& place, const Phase& phase, int64_t image, int64_t t, const Segments& segments,
             const W* weights, S* y, const Epilogue& epilogue, Row<W>& row, FewJob<S, W>& job, Ahead& ahead) {
  using T = Arithmetic<S>;
  const ConvGeometry& g = call.g;
  const int64_t out_row = (place.image + image) * g.out_h + phase.y->out_start + (place.t + t) * phase.y->out_step;
  row.out.clear();
  for (const int64_t u : segments.in) {
    const int64_t column = phase.x->out_start + (place.u + u) * phase.x->out_step;
    row.out.push_back((out_row * g.out_w + column) * g.out_channels + place.group * call.out_channels);
  }
  job.blocks = call.in_blocks;
  job.groups = row.groups.data();
  job.group_count = static_cast<int64_t>(row.groups.size());
  job.out_pixel_stride = phase.x->out_step * g.out_channels;
  job.activation = epilogue.activation;
  job.slope = static_cast<T>(epilogue.slope);
  const int64_t per_channel = static_cast<int64_t>(phase.taps.size()) * call.in_blocks * kChannelBlock;
  for (int64_t o = 0; o < call.out_channels; ++o) {
    job.weights = weights + phase.weights + o * per_channel;
    job.output = y + o;
    job.bias = epilogue.bias == nullptr ? T(0) : widen(static_cast<const S*>(epilogue.bias)[place.group * call.out_channels + o]);
    for (const bool wide : {true, false}) {
      const int64_t first = wide ? 0 : segments.wide;
      job.wide = wide;
      job.segments = (wide ? segments.wide : static_cast<int64_t>(segments.in.size())) - first;
      if (job.segments == 0) continue;
      job.segment_in = row.in.data() + first;
      job.segment_out = row.out.data() + first;
      job.segment_valid = segments.valid.data() + first;
      job.ahead = ahead.take(2 * job.segments * job.group_count * job.blocks);
      call.engine.run.few(job);
    }
  }
}

// A tile's images, row after row: packs what the next row of output reads, unless that is read in place, and computes it. `packed` is
// the ring, or zeros.
template <class S, class W>
void run_tile(const Call<S, W>& call, const TilePlace& place, const S* x, const Prologue& prologue, W* packed, const W* weights, S* y,
              const Epilogue& epilogue, Ahead& ahead) {
  std::vector<Segments> segments;
  for (const Phase& phase : call.phases) {
    const int64_t width = std::min(place.u + call.tile_u, phase.x->count) - place.u;
    segments.emplace_back(std::max<int64_t>(0, width), call.engine.few_pixels_wide);
  }
  const int64_t rows = std::min(call.tile_t, call.axis_y.max_count - place.t);
  Row<W> row;
  for (int64_t image = 0; image < place.images; ++image) {
    int64_t ready = 0;
    for (int64_t t = 0; t < rows; ++t) {
      for (; !call.in_place && ready < t + call.axis_y.span; ++ready) {
        pack_tile_row(call.g, call.axis_y, call.axis_x, call.layout, place, image, ready, x, prologue, call.engine.run.pack_row,
                      packed + ready % call.layout.rows * call.layout.columns * kChannelBlock);
      }
      for (std::size_t i = 0; i < call.phases.size(); ++i) {
        const Phase& phase = call.phases[i];
        if (place.t + t >= phase.y->count || segments[i].in.empty()) continue;
        FewJob<S, W> job{};
        if (call.in_place) {
          read_in_place(call, place, phase, image, t, segments[i], x, packed, row, job);
        } else {
          read_ring(call, phase, t, segments[i], packed, row, job);
        }
        run_row(call, place, phase, image, t, segments[i], weights, y, epilogue, row, job, ahead);
      }
    }
  }
}

}  // namespace

template <class S, class W>
void few_conv(const ConvGeometry& g, const AxisPlan& axis_y, const AxisPlan& axis_x, const WeightStrides& strides, const S* x,
              const S* weight, S* y, const Epilogue& epilogue, const Prologue& prologue, int threads) {
  const bool as_stored = x != nullptr && prologue.y == nullptr && reinterpret_cast<uintptr_t>(x) % sizeof(W) == 0;
  const Call<S, W> call(g, axis_y, axis_x, as_stored, threads);
  const CallScratch weight_memory(kSharedWeights, g.groups * call.weights_per_group * sizeof(W));
  W* const packed_weights = weight_memory.as<W>();
  pack_weights(call, strides, weight, packed_weights, threads);
  const int64_t tiles = call.count(g.groups);
  const int64_t segments = ceil_div(call.tile_u, call.engine.few_pixels_wide);
  parallel_tasks(tiles, threads, [&](int64_t task) {
    const TilePlace place = call.place(task, g.batch);
    W* const packed = static_cast<W*>(scratch(kTileA, call.tile_elements * sizeof(W)));
    Ahead ahead(2 * place.images * call.tile_t * segments * call.tile_groups * call.in_blocks * call.out_channels);
    if (call.in_place) {
      // What a row of output reads first is the row below those that the one above it read.
      std::fill_n(packed, call.in_blocks * kChannelBlock, W(0));
      TilePlace below = place;
      below.t += call.axis_y.span;
      if (below.t < axis_y.max_count) {
        fetch_tile(ahead, g, axis_y, below, call.tile_t - call.axis_y.span, call.tiles_u == 1, x, prologue);
      }
    } else if (task + 1 < tiles) {
      fetch_tile(ahead, g, axis_y, call.place(task + 1, g.batch), call.tile_t, call.tiles_u == 1, x, prologue);
    }
    run_tile(call, place, x, prologue, packed, packed_weights + place.group * call.weights_per_group, y, epilogue, ahead);
  });
}

#define GAN_FAST_FEW_CONV(S, W)                                                                                                    \
  template void few_conv<S, W>(const ConvGeometry&, const AxisPlan&, const AxisPlan&, const WeightStrides&, const S*, const S*, S*, \
                               const Epilogue&, const Prologue&, int);
GAN_FAST_FEW_CONV(float, float)
GAN_FAST_FEW_CONV(Bf16, float)
GAN_FAST_FEW_CONV(Bf16, Bf16Pair)
GAN_FAST_FEW_CONV(double, double)

}  // namespace gan_fast
