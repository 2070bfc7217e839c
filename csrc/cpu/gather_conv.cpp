#include "gather_conv.h"

#include <algorithm>
#include <type_traits>
#include <vector>

#include "ahead.h"
#include "common/activation.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "few_conv.h"
#include "gather_blocking.h"
#include "matrix_conv.h"
#include "matrix_kernels.h"
#include "pair_kernels.h"
#include "tile.h"
#include "weights_block.h"
#include "winograd_conv.h"

namespace gan_fast {
namespace {

// Tiles of packed input stay in a core's L2 beside one panel of weights (1 MB on server parts, 512 KB on small ones).
constexpr int64_t kTileBytes = 320 * 1024;
// So many weights, in bytes, stream from behind the near cache once per tile: a larger one is worth more than an even share then.
constexpr int64_t kManyWeights = 1 << 20;
constexpr int64_t kTileCost = 8;  // in positions
// One chain of fp32 sums this long keeps the error at about 1.3x of torch's (one of 3200 gave 2.8x), and its panel below 82 KB.
constexpr int64_t kChunkDepth = 640;
constexpr int64_t kStreamDepth = 64;  // below so many products per output the store is what the time goes into
// Up to here a block of kChannelBlock channels would be so empty that the tile is better kept as rows of the input (RowLayout);
// not with several phases, whose few products per pixel would not pay for runs of one pixel.
constexpr int64_t kShallow = 12;
// Of a tile of rows with vectors of 32 bytes and fewer: near the first cache, and many enough to share a single image out. 1.03 times as fast
// as tiles ten times as large in the mean of nine calls, 1.07 and 1.1 for two single images (a Zen 4 with AVX2).
constexpr int64_t kShallowTileBytes = 32 * 1024;

struct Phase {
  const AxisPhase *y, *x;
  std::vector<Tap> taps;
  std::vector<RowWord> words;  // of a tile of rows
  int64_t depth;               // words of all taps
  int64_t depth_before;        // of all earlier phases: where its weights start
  std::vector<GemmStep> steps;
  std::vector<int64_t> offsets;      // of words, instead of steps, in a tile of rows
  std::vector<int64_t> chunk_steps;  // number of steps in each chunk of K
};

// What one call shares between its tasks.
template <class S, class W>
struct Call : TileGrid {
  const ConvGeometry& g;
  const GatherEngine<S, W> engine;
  const GatherFunctions<S, W>& run;
  const AxisPlan &axis_y, &axis_x;
  int64_t in_channels, out_channels;  // per group
  int64_t in_words;                   // that the input channels fill
  bool shallow;                       // few input channels
  int64_t lanes;        // output channels per block
  int64_t out_blocks;   // per group
  int64_t in_blocks;    // blocks of kChannelBlock words per group
  std::vector<Phase> phases;
  int64_t weights_per_group;
  bool stream_weights;
  TileLayout layout;
  RowLayout row_layout;
  int64_t tile_words;

  Call(const ConvGeometry& geometry, const AxisPlan& y, const AxisPlan& x, int threads);
  int64_t kernel_steps() const;  // of a tile's register blocks, that fetch the next tile
  void lay_out();
};

// Whether a tile is kept as rows of the input.
bool keeps_rows(const ConvGeometry& g, const AxisPlan& axis_y, const AxisPlan& axis_x) {
  return g.in_channels > 0 && g.in_channels <= kShallow && g.groups == 1 && axis_y.phases.size() * axis_x.phases.size() == 1;
}

// Whether there are hardly more pairs than half of what is read.
bool makes_pairs(const ConvGeometry& g, const AxisPlan& axis_y, const AxisPlan& axis_x) {
  return g.in_channels / g.groups > kShallow || (keeps_rows(g, axis_y, axis_x) && rows_make_pairs(axis_x, g.in_channels));
}

template <class S, class W>
Call<S, W>::Call(const ConvGeometry& geometry, const AxisPlan& y_plan, const AxisPlan& x_plan, int threads)
    : g(geometry), engine(gather_engine<S, W>()), run(engine.run), axis_y(y_plan), axis_x(x_plan) {
  in_channels = g.in_channels / g.groups;
  out_channels = g.out_channels / g.groups;
  lanes = 2 * engine.vector_bytes / static_cast<int64_t>(sizeof(Sum<W>));
  out_blocks = ceil_div(out_channels, lanes);
  in_words = ceil_div(in_channels, kPerWord<W>);
  in_blocks = ceil_div(in_words, kChannelBlock);
  shallow = keeps_rows(g, axis_y, axis_x);
  int64_t depth = 0;
  for (const AxisPhase& y : axis_y.phases) {
    for (const AxisPhase& x : axis_x.phases) {
      Phase phase{&y, &x, phase_taps(y, x, axis_x.planes, g.kernel_w), {}, 0, depth, {}, {}, {}};
      if (shallow) {
        order_by_place(phase.taps, axis_y, axis_x);
        phase.words = row_words(phase.taps, axis_y, axis_x, in_channels, g.kernel_h * g.kernel_w, kPerWord<W>);
      }
      phase.depth = static_cast<int64_t>(shallow ? phase.words.size() : phase.taps.size() * in_words);
      depth += phase.depth;
      phases.push_back(std::move(phase));
    }
  }
  const int64_t per_position = (shallow ? in_channels : in_blocks * kChannelBlock) * axis_y.planes * axis_x.planes;
  weights_per_group = depth * out_blocks * lanes;
  stream_weights = !shallow && streams_weights<W>(g.groups * weights_per_group, threads);
  const bool many = weights_per_group * static_cast<int64_t>(sizeof(W)) >= kManyWeights;
  const int64_t tile_bytes = shallow && !many && engine.vector_bytes < 64 ? kShallowTileBytes : (many ? 2 : 1) * kTileBytes;
  const int64_t budget = tile_bytes / static_cast<int64_t>(shallow ? sizeof(Element<W>) : sizeof(W));
  static_cast<TileGrid&>(*this) = choose_tiles(g, axis_y, axis_x, per_position, budget, engine.pixels, many ? kTileCost : 0, threads);
  lay_out();
}

template <class S, class W>
int64_t Call<S, W>::kernel_steps() const {
  const int64_t rows = tile_images * tile_t;
  return ceil_div(rows * tile_u, engine.pixels) * (weights_per_group / lanes) / (stream_weights ? 2 : 1);
}

template <class S, class W>
void Call<S, W>::lay_out() {
  layout = TileLayout(tile_t + axis_y.span - 1, tile_u + axis_x.span - 1, axis_y.planes * axis_x.planes, in_blocks);
  tile_words = tile_images * layout.image_stride;
  if (shallow) {
    row_layout = RowLayout(layout.rows * axis_y.planes, layout.columns * axis_x.planes, in_channels);
    tile_words = ceil_div(tile_images * row_layout.image_stride, kPerWord<W>);
    Phase& phase = phases.front();
    for (const RowWord& word : phase.words) phase.offsets.push_back(word.row * row_layout.row_stride + word.column);
    for (int64_t left = phase.depth; left > 0; left -= kChunkDepth) phase.chunk_steps.push_back(std::min(left, kChunkDepth));
    if (phase.chunk_steps.empty()) phase.chunk_steps.push_back(0);
    return;
  }
  for (Phase& phase : phases) {
    const auto place = [&](const Tap& tap) {
      return tap.plane * layout.plane_stride + (tap.dy * layout.columns + tap.dx) * kChannelBlock;
    };
    int64_t depth = kChunkDepth;  // of the chunk
    for (const Tap& tap : phase.taps) {
      for (int64_t b = 0; b < in_blocks; ++b) {
        const int64_t words = std::min(kChannelBlock, in_words - b * kChannelBlock);
        if (depth + words > kChunkDepth) {
          phase.chunk_steps.push_back(0);
          depth = 0;
        }
        depth += words;
        phase.steps.push_back({b * layout.block_stride + place(tap), words});
        ++phase.chunk_steps.back();
      }
    }
    if (phase.chunk_steps.empty()) phase.chunk_steps.push_back(0);  // no tap: the epilogue of zero
  }
}

template <class S, class W>
void pack_weights(const Call<S, W>& call, const WeightStrides& strides, const S* weight, W* packed, int threads, Shares shares) {
  const int64_t all_taps = call.g.kernel_h * call.g.kernel_w;
  parallel_tasks(call.g.groups * call.out_blocks * call.in_blocks, threads, shares, [&](int64_t task) {
    const int64_t block = task % call.in_blocks;
    const int64_t unit = task / call.in_blocks % call.out_blocks;
    const int64_t group = task / call.in_blocks / call.out_blocks;
    const int64_t first_word = block * kChannelBlock, words = std::min(kChannelBlock, call.in_words - first_word);
    const int64_t first = first_word * kPerWord<W>, channels = words * kPerWord<W>;  // the last of which may not exist
    const S* from = weight + group * strides.group;
    W* to = packed + group * call.weights_per_group;
    const int64_t first_out = unit * call.lanes;
    const int64_t valid = std::min(call.lanes, call.out_channels - first_out);
    const WeightsBlock lines{std::min(channels, call.in_channels - first), all_taps, call.lanes, valid};
    const S* const weights = weight_lines(from + first_out * strides.out + first * strides.in, strides, lines);
    for (const Phase& phase : call.phases) {
      const int64_t taps = static_cast<int64_t>(phase.taps.size());
      W* panel = to + (phase.depth_before * call.out_blocks + unit * phase.depth) * call.lanes;
      if (call.shallow) {
        pack_row_words(weights, lines, phase.words, panel);
        continue;
      }
      for (int64_t t = 0; t < taps; ++t) {
        for (int64_t w = 0; w < words; ++w) {
          W* const out = panel + (t * call.in_words + first_word + w) * call.lanes;
          if (call.stream_weights) {
            stream_word<W>(weights, lines, w, phase.taps[t].kernel, out);
          } else {
            pack_word<W>(weights, lines, w, phase.taps[t].kernel, out);
          }
        }
      }
    }
    if (call.stream_weights) finish_streams();
  });
}

// One task: a place, and the output blocks that it serves.
struct Tile : TilePlace {
  int64_t block_begin, block_end;
};

// Rows of a phase inside a tile, cut into equal runs of `length` pixels; the last run of a row is moved back to end with the row.
struct Runs {
  std::vector<int64_t> in, out;
  int64_t length;
};

template <class S, class W>
Runs cut_runs(const Call<S, W>& call, const Tile& tile, const Phase& phase, int64_t length) {
  const ConvGeometry& g = call.g;
  const int64_t t_end = std::min(tile.t + call.tile_t, phase.y->count);
  const int64_t u_end = std::min(tile.u + call.tile_u, phase.x->count);
  const int64_t width = u_end - tile.u;
  Runs runs{{}, {}, length};
  for (int64_t n = 0; n < tile.images; ++n) {
    for (int64_t t = tile.t; t < t_end; ++t) {
      const int64_t out_row = ((tile.image + n) * g.out_h + phase.y->out_start + t * phase.y->out_step) * g.out_w;
      for (int64_t done = 0; done < width; done += length) {
        const int64_t u = std::min(done, width - length);
        runs.in.push_back(call.shallow ? n * call.row_layout.image_stride + (t - tile.t) * call.axis_y.planes * call.row_layout.row_stride +
                                             u * call.axis_x.planes * call.in_channels
                                       : n * call.layout.image_stride + ((t - tile.t) * call.layout.columns + u) * kChannelBlock);
        runs.out.push_back((out_row + phase.x->out_start + (tile.u + u) * phase.x->out_step) * g.out_channels +
                           tile.group * call.out_channels);
      }
    }
  }
  return runs;
}

template <class S, class W>
void run_gemm(const Call<S, W>& call, const Tile& tile, const Phase& phase, const W* packed, const W* weights, const Sum<W>* bias,
              S* y, const Epilogue& epilogue, bool stream, Ahead& ahead) {
  const int64_t width = std::min(tile.u + call.tile_u, phase.x->count) - tile.u;
  const int64_t rows = tile.images * (std::min(tile.t + call.tile_t, phase.y->count) - tile.t);
  // Pixels of a tile of rows have no common stride that the kernel knows: every run is one pixel.
  const int64_t length = call.shallow ? 1 : best_run_length(rows, width, call.engine.pixels);
  const int64_t runs_per_block = std::min<int64_t>(kMaxRuns, call.engine.pixels / length);
  Runs runs = cut_runs(call, tile, phase, length);
  while (runs.in.size() % runs_per_block != 0) {
    runs.in.push_back(0);
    runs.out.push_back(-1);
  }
  GemmJob<S, W> job{};
  job.blocks = static_cast<int64_t>(runs.in.size()) / runs_per_block;
  const int64_t block_sums = runs_per_block * length * call.lanes;
  job.sums = static_cast<Sum<W>*>(scratch(kTileC, job.blocks * block_sums * sizeof(Sum<W>)));
  job.tile = packed;
  job.run_in = runs.in.data();
  job.run_out = runs.out.data();
  job.run_length = static_cast<int>(length);
  job.stream = stream;
  job.out_pixel_stride = phase.x->out_step * call.g.out_channels;
  job.activation = epilogue.activation;
  job.slope = static_cast<Arithmetic<S>>(epilogue.slope);
  for (int64_t block = tile.block_begin; block < tile.block_end; ++block) {
    job.output = y + block * call.lanes;
    job.out_lanes = std::min(call.lanes, call.out_channels - block * call.lanes);
    job.bias = bias == nullptr ? nullptr : bias + (tile.group * call.out_blocks + block) * call.lanes;
    job.panel = weights + (phase.depth_before * call.out_blocks + block * phase.depth) * call.lanes;
    job.steps = phase.steps.data();
    job.offsets = call.shallow ? phase.offsets.data() : nullptr;
    for (std::size_t chunk = 0; chunk < phase.chunk_steps.size(); ++chunk) {
      job.step_count = phase.chunk_steps[chunk];
      job.accumulate = chunk > 0;
      job.finish = chunk + 1 == phase.chunk_steps.size();
      int64_t depth_here = 0;
      if (call.shallow) {
        depth_here = job.step_count;
      } else {
        for (int64_t s = 0; s < job.step_count; ++s) depth_here += job.steps[s].depth;
      }
      // The next panel, which follows and is about as large, unless all of them are near anyway; and the next tile.
      const int64_t panel = depth_here * call.lanes;
      const auto [even, odd] = BlockSteps(job.blocks, depth_here);
      const bool last = job.finish && block + 1 == tile.block_end;
      job.ahead[0] = call.stream_weights && !last ? fetch_within(job.panel + panel, panel * static_cast<int64_t>(sizeof(W)), even)
                                                  : ahead.take(even);
      job.ahead[1] = ahead.take(odd);
      call.run.gemm(job);
      job.panel += panel;
      if (call.shallow) {
        job.offsets += job.step_count;
      } else {
        job.steps += job.step_count;
      }
    }
  }
}

template <class S, class W>
void direct_conv(const ConvGeometry& g, const AxisPlan& axis_y, const AxisPlan& axis_x, const WeightStrides& strides, const S* x,
                 const S* weight, S* y, const Epilogue& epilogue, const Prologue& prologue, int threads) {
  const Call<S, W> call(g, axis_y, axis_x, threads);

  const int64_t weight_elements = g.groups * call.weights_per_group;
  const int64_t bias_elements = epilogue.bias == nullptr ? 0 : g.groups * call.out_blocks * call.lanes;
  const CallScratch weight_memory(kSharedWeights, weight_elements * sizeof(W) + (bias_elements + 1) * sizeof(Sum<W>));
  W* const packed_weights = weight_memory.as<W>();
  const int64_t tiles = call.count(g.groups), splits = output_splits(tiles, call.out_blocks, threads);
  pack_weights(call, strides, weight, packed_weights, threads, shares_of_weights(splits));
  Sum<W>* bias = nullptr;
  if (bias_elements != 0) {
    bias = reinterpret_cast<Sum<W>*>(packed_weights + weight_elements);
    pad_bias(static_cast<const S*>(epilogue.bias), g.groups, call.out_channels, call.out_blocks * call.lanes, bias);
  }

  const int64_t taps = g.kernel_h * g.kernel_w;
  const bool stream = !std::is_same_v<S, double> && call.in_channels * taps <= kStreamDepth && leaves_cache(g, y);

  parallel_tasks(tiles * splits, threads, [&](int64_t task) {
    const int64_t split = task / tiles;
    const Tile tile{call.place(task % tiles, g.batch), call.out_blocks * split / splits, call.out_blocks * (split + 1) / splits};
    W* packed = static_cast<W*>(scratch(kTileA, call.tile_words * sizeof(W)));
    const W* weights = packed_weights + tile.group * call.weights_per_group;
    Ahead ahead(call.kernel_steps());
    if (splits == 1 && task + 1 < tiles) {  // most often this thread's next
      fetch_tile(ahead, g, axis_y, call.place(task + 1, g.batch), call.tile_t, call.tiles_u == 1, x, prologue);
    }
    if (call.shallow) {
      pack_rows(g, axis_y, axis_x, call.row_layout, tile, x, prologue, call.run.pack_line, reinterpret_cast<Element<W>*>(packed));
    } else {
      pack_tile(g, axis_y, axis_x, call.layout, tile, x, prologue, call.run.pack_row, packed);
    }
    for (const Phase& phase : call.phases) {
      if (tile.t >= phase.y->count || tile.u >= phase.x->count) continue;
      run_gemm(call, tile, phase, packed, weights, bias, y, epilogue, stream, ahead);
    }
  });
}

}  // namespace

template <class S>
void gather_conv(const ConvGeometry& g, const AxisPlan& axis_y, const AxisPlan& axis_x, const WeightStrides& strides, const S* x,
                 const S* weight, S* y, const Epilogue& epilogue, const Prologue& prologue, int threads) {
  if (g.batch == 0 || g.out_channels == 0 || g.out_h == 0 || g.out_w == 0) return;
  const bool bf16_registers = std::is_same_v<S, Bf16> && matrix_kernels() != nullptr;
  const WinogradForm form = bf16_registers ? WinogradForm{} : winograd_form<S>(g, axis_y, axis_x, strides);
  bool lost = false;
  if constexpr (!std::is_same_v<S, double>) {
    if (matrix_kernels() != nullptr && (bf16_registers || float_parts_pay(g, axis_y, axis_x, form))) {
      const bool served = matrix_few_pays(g, axis_x) ? matrix_few_conv(g, axis_y, axis_x, strides, x, weight, y, epilogue, prologue, threads)
                                                     : matrix_conv(g, axis_y, axis_x, strides, x, weight, y, nullptr, epilogue, prologue, threads);
      if (served) return;
      lost = true;
    }
  }
  // Not of what parts cannot hold: the transforms would spread infinity.
  if (form.outputs != 0 && !lost) return winograd_conv(g, axis_y, axis_x, form, strides, x, weight, y, epilogue, prologue, threads);
  if constexpr (std::is_same_v<S, Bf16>) {
    if (pair_kernels() != nullptr && makes_pairs(g, axis_y, axis_x)) {
      if (few_outputs(g, gather_kernels_for<S>().vector_bytes / static_cast<int64_t>(sizeof(float)))) {
        return few_conv<Bf16, Bf16Pair>(g, axis_y, axis_x, strides, x, weight, y, epilogue, prologue, threads);
      }
      return direct_conv<Bf16, Bf16Pair>(g, axis_y, axis_x, strides, x, weight, y, epilogue, prologue, threads);
    }
  }
  if (few_outputs(g, gather_kernels_for<S>().vector_bytes / static_cast<int64_t>(sizeof(Arithmetic<S>)))) {
    return few_conv<S, Arithmetic<S>>(g, axis_y, axis_x, strides, x, weight, y, epilogue, prologue, threads);
  }
  direct_conv<S, Arithmetic<S>>(g, axis_y, axis_x, strides, x, weight, y, epilogue, prologue, threads);
}

template void gather_conv<float>(const ConvGeometry&, const AxisPlan&, const AxisPlan&, const WeightStrides&, const float*,
                                 const float*, float*, const Epilogue&, const Prologue&, int);
template void gather_conv<Bf16>(const ConvGeometry&, const AxisPlan&, const AxisPlan&, const WeightStrides&, const Bf16*, const Bf16*,
                                Bf16*, const Epilogue&, const Prologue&, int);
template void gather_conv<double>(const ConvGeometry&, const AxisPlan&, const AxisPlan&, const WeightStrides&, const double*,
                                  const double*, double*, const Epilogue&, const Prologue&, int);

}  // namespace gan_fast
