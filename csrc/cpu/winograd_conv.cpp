#include "winograd_conv.h"

#include <algorithm>
#include <type_traits>
#include <vector>

#include "ahead.h"
#include "common/parallel.h"
#include "common/plan.h"
#include "common/scratch.h"
#include "pair_kernels.h"
#include "tile.h"
#include "winograd_call.h"

namespace gan_fast {
namespace {

using winograd::Call;
using winograd::Phase;

// In the type of the arithmetic; valid until this thread's next use of kTileB.
template <class S>
const Arithmetic<S>* widened(const S* from, int64_t n) {
  if constexpr (std::is_same_v<S, Arithmetic<S>>) {
    return from;
  } else {
    Arithmetic<S>* const to = static_cast<Arithmetic<S>*>(scratch(kTileB, n * sizeof(Arithmetic<S>)));
    for (int64_t i = 0; i < n; ++i) to[i] = widen(from[i]);
    return to;
  }
}

template <class S, class W>
void pack_weights(const Call<S, W>& call, const WeightStrides& strides, const S* weight, W* packed, int threads, Shares shares) {
  using T = Arithmetic<S>;
  const auto& run = winograd_operands<S, W>(call.form.outputs);
  const int64_t all_taps = call.g.kernel_h * call.g.kernel_w;
  const int64_t lanes = call.lanes;
  parallel_tasks(call.g.groups * call.out_blocks * call.word_blocks, threads, shares, [&](int64_t task) {
    const int64_t in_block = task % call.word_blocks;
    const int64_t out_block = task / call.word_blocks % call.out_blocks;
    const int64_t group = task / call.word_blocks / call.out_blocks;
    const int64_t first = in_block * kChannelBlock, words = std::min(kChannelBlock, call.in_words - first);
    const int64_t first_out = out_block * lanes, valid = std::min(lanes, call.out_channels - first_out);
    W* to = packed + group * call.weights_per_group;
    const int64_t first_channel = first * kPerWord<W>;
    const WeightsBlock block{std::min(words * kPerWord<W>, call.in_channels - first_channel), all_taps, lanes, valid};
    const S* const from = weight + group * strides.group + first_out * strides.out + first_channel * strides.in;
    const T* const lines = widened(weight_lines(from, strides, block), block.channels * all_taps * lanes);
    for (int64_t w = first; w < first + words; ++w) {
      const int64_t channel = (w - first) * kPerWord<W>, channels = std::min(kPerWord<W>, block.channels - channel);
      for (const Phase& phase : call.phases) {
        int64_t before[kMostPoints] = {};  // words of the planes before this one
        for (const WinogradFilter& filter : phase.filters) {
          WeightTransform<T, W> job{};
          job.stream = call.stream_weights;
          for (int64_t c = 0; c < channels; ++c) {
            for (int k = 0; k < 9; ++k) {
              job.taps[c][k] = filter.kernel[k] < 0 ? nullptr : lines + ((channel + c) * all_taps + filter.kernel[k]) * lanes;
            }
          }
          for (int p = 0; p < call.form.points(); ++p) {
            if (!filter.has(p)) continue;
            job.out[p] = to + phase.weights[p] + (out_block * phase.depth[p] + before[p] + w) * lanes;
            before[p] += call.in_words;
          }
          run.weight_transform(job);
        }
      }
    }
    if (call.stream_weights) finish_streams();
  });
}

// A piece of a tile, in phase coordinates.
struct Piece {
  int64_t image;
  AxisPiece y, x;
  int edge;  // winograd_plan.h
};

template <class S, class W>
std::vector<Piece> pieces_of(const Call<S, W>& call, const TilePlace& place, const PieceRange& rows, const PieceRange& columns) {
  const int outputs = call.form.outputs;
  std::vector<Piece> pieces;
  for (int64_t n = place.image; n < place.image + place.images; ++n) {
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      for (int64_t column = columns.begin; column < columns.end; ++column) {
        const AxisPiece &y = call.along_y[row], &x = call.along_x[column];
        pieces.push_back({n, y, x, edge_of(y.is_short(outputs), x.is_short(outputs))});
      }
    }
  }
  std::stable_sort(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& b) { return a.edge < b.edge; });
  return pieces;
}

// A point's register blocks in a chunk: runs of the pieces that have a product there, cut so that the least is computed besides. Ahead of
// its first and behind its last product a block costs as much as a piece more.
struct PointRuns {
  int64_t length, blocks;
  std::vector<int64_t> in;

  PointRuns(PieceRange range, int pixels) : length(1), blocks(0) {
    const int64_t wanted = range.end - range.begin;
    int64_t runs = 1, least = 0;
    for (int64_t each = pixels; each >= 1 && wanted != 0; --each) {
      const int64_t together = std::min<int64_t>(kMaxRuns, pixels / each), needed = ceil_div(wanted, together * each);
      const int64_t cost = needed * (together * each + 1);
      if (least != 0 && cost >= least) continue;
      least = cost;
      length = each;
      runs = together;
      blocks = needed;
    }
    for (int64_t r = 0; r < blocks * runs; ++r) in.push_back((range.begin + r * length) * kChannelBlock);
  }
};

struct Blocks {
  int64_t begin, end;
};

// Those output blocks of some of a tile's pieces.
template <class S, class W>
void run_chunk(const Call<S, W>& call, const TilePlace& packed_at, const std::vector<Piece>& pieces, std::size_t first, std::size_t count,
               const Blocks& blocks, const Arithmetic<S>* packed, const W* weights, const Arithmetic<S>* bias, S* y, const Epilogue& epilogue,
               bool stream, Ahead& ahead) {
  using T = Arithmetic<S>;
  const GatherEngine<S, W> table = gather_engine<S, W>();
  const auto& gather = table.run;
  const auto& winograd = functions_of<S>(winograd_kernels_for<S>().of(call.form.outputs));
  const ConvGeometry& g = call.g;
  const int64_t wanted = static_cast<int64_t>(count);
  const int64_t padded = wanted + table.pixels;  // a point's last register block may reach over its pieces; what it computes there is lost

  std::vector<int64_t> offsets(count);
  EdgeCounts edges{};
  for (std::size_t i = 0; i < count; ++i) {
    const Piece& piece = pieces[first + i];
    offsets[i] = (piece.image - packed_at.image) * call.layout.image_stride +
                 ((piece.y.start - packed_at.t) * call.layout.columns + piece.x.start - packed_at.u) * kChannelBlock;
    ++edges.pieces[piece.edge];
  }
  std::vector<PointRuns> point_runs;
  for (int p = 0; p < call.form.points(); ++p) point_runs.emplace_back(edges.at(p, call.form), table.pixels);

  W* const transformed = static_cast<W*>(scratch(kTileB, (padded * call.piece_elements + call.form.points() * kPointPad) * sizeof(W)));
  const int64_t block = padded * kChannelBlock;
  W* point_start[kMostPoints];
  W* next = transformed;
  for (int p = 0; p < call.form.points(); ++p) {
    point_start[p] = next;
    next += call.slots[p] * call.word_blocks * block + kPointPad;
  }
  for (int64_t plane = 0; plane < call.layout.planes; ++plane) {
    InputTransform<T, W> job{};
    job.tile = packed + plane * call.layout.plane_stride;
    job.row_stride = call.layout.columns * kChannelBlock;
    job.pieces = offsets.data();
    job.count = wanted;
    job.in_block = call.layout.block_stride;
    job.blocks = call.in_blocks;
    job.out_piece = kChannelBlock;
    job.out_block = block;
    for (int p = 0; p < call.form.points(); ++p) {
      const bool alive = (call.plane_points[plane] >> p & 1) != 0;
      job.out[p] = alive ? point_start[p] + call.slot[p][plane] * call.word_blocks * block : nullptr;
    }
    winograd_operands<S, W>(call.form.outputs).input_transform(job);
  }

  // Points outside, output blocks inside: a point's pieces are then read from the near cache for every block of the group. The
  // group is what the near cache holds of sums besides.
  const int64_t block_sums = padded * call.lanes;
  const int64_t group_blocks =
      std::clamp<int64_t>(call.sum_bytes / static_cast<int64_t>(sizeof(T)) / (call.form.points() * block_sums), 1, blocks.end - blocks.begin);
  T* const sums = static_cast<T*>(scratch(kTileC, group_blocks * call.form.points() * block_sums * sizeof(T)));
  std::vector<int64_t> out(count);
  std::vector<PieceOutputs> valid(count);
  std::vector<GemmStep> steps;
  for (const Phase& phase : call.phases) {
    for (std::size_t i = 0; i < count; ++i) {
      const Piece& piece = pieces[first + i];
      const int64_t row = phase.y->out_start + piece.y.start * phase.y->out_step, column = phase.x->out_start + piece.x.start * phase.x->out_step;
      // A phase may be one row or column shorter than the longest: then its last piece can be empty.
      const auto end = [&](int64_t all, const AxisPiece& along) {
        return static_cast<uint8_t>(std::clamp<int64_t>(all - along.start, 0, along.end));
      };
      valid[i] = {static_cast<uint8_t>(piece.y.first), end(phase.y->count, piece.y), static_cast<uint8_t>(piece.x.first),
                  end(phase.x->count, piece.x)};
      out[i] = ((piece.image * g.out_h + row) * g.out_w + column) * g.out_channels + packed_at.group * call.out_channels;
    }
    std::vector<int> points;  // with products
    for (int p = 0; p < call.form.points(); ++p) {
      if (phase.depth[p] != 0 && point_runs[p].blocks != 0) points.push_back(p);
    }
    const auto panel_of = [&](int point, int64_t out_block) {
      return weights + phase.weights[point] + out_block * phase.depth[point] * call.lanes;
    };
    for (int64_t first_block = blocks.begin; first_block < blocks.end; first_block += group_blocks) {
      const int64_t end_block = std::min(first_block + group_blocks, blocks.end);
      for (std::size_t k = 0; k < points.size(); ++k) {
        const int p = points[k], next = points[(k + 1) % points.size()];
        const PointRuns& runs = point_runs[p];
        steps.clear();
        for (std::size_t plane = 0; plane < phase.filters.size(); ++plane) {
          if (!phase.filters[plane].has(p)) continue;
          for (int64_t b = 0; b < call.word_blocks; ++b) {
            const int64_t words = std::min(kChannelBlock, call.in_words - b * kChannelBlock);
            steps.push_back({(call.slot[p][plane] * call.word_blocks + b) * block, words});
          }
        }
        // All but the next tile comes from the far cache otherwise, in the first register block or for the first output block that needs it.
        // The even register blocks fetch the next call's panel, the odd ones in turn what the next point reads of the pieces and the tile.
        const auto [even, odd] = BlockSteps(runs.blocks, phase.depth[p]);
        Ahead next_pieces((end_block - first_block + 1) / 2 * odd);
        next_pieces.add(point_start[next], call.slots[next] * call.word_blocks * block * static_cast<int64_t>(sizeof(W)));
        for (int64_t out_block = first_block; out_block < end_block; ++out_block) {
          GemmJob<S, W> job{};
          job.tile = point_start[p];
          job.run_in = runs.in.data();
          job.run_length = static_cast<int>(runs.length);
          job.blocks = runs.blocks;
          job.steps = steps.data();
          job.step_count = static_cast<int64_t>(steps.size());
          job.chain = winograd_chain(call.form.outputs);
          job.sums =
              sums + ((out_block - first_block) * call.form.points() + p) * block_sums + edges.at(p, call.form).begin * call.lanes;
          job.out_lanes = std::min(call.lanes, call.out_channels - out_block * call.lanes);
          job.panel = panel_of(p, out_block);
          const bool last_block = out_block + 1 == end_block;
          const int after = last_block ? next : p;
          const W* const next_panel = panel_of(after, last_block ? first_block : out_block + 1);
          const int64_t panel_bytes = phase.depth[after] * call.lanes * static_cast<int64_t>(sizeof(W));
          const bool known = !last_block || k + 1 < points.size();
          job.ahead[0] = known ? fetch_within(next_panel, panel_bytes, even) : ahead.take(even);
          job.ahead[1] = (static_cast<int64_t>(k) + out_block) % 2 == 0 ? next_pieces.take(odd) : ahead.take(odd);
          gather.gemm(job);
        }
      }
      for (int64_t out_block = first_block; out_block < end_block; ++out_block) {
        OutputTransform<S> finish{};
        finish.out_lanes = std::min(call.lanes, call.out_channels - out_block * call.lanes);
        for (int p = 0; p < call.form.points(); ++p) {
          if (phase.depth[p] != 0) finish.sums[p] = sums + ((out_block - first_block) * call.form.points() + p) * block_sums;
        }
        finish.count = wanted;
        finish.out = out.data();
        finish.valid = valid.data();
        finish.output = y + out_block * call.lanes;
        finish.out_row = phase.y->out_step * g.out_w * g.out_channels;
        finish.out_pixel = phase.x->out_step * g.out_channels;
        finish.bias = bias == nullptr ? nullptr : bias + (packed_at.group * call.out_blocks + out_block) * call.lanes;
        finish.stream = stream;
        finish.activation = epilogue.activation;
        finish.slope = static_cast<T>(epilogue.slope);
        winograd.output_transform(finish);
      }
    }
  }
}

template <class S, class W>
void winograd_in(const ConvGeometry& g, const AxisPlan& axis_y, const AxisPlan& axis_x, const WinogradForm& form,
                 const WeightStrides& strides, const S* x, const S* weight, S* y, const Epilogue& epilogue, const Prologue& prologue, int threads) {
  using T = Arithmetic<S>;
  note_winograd(form.outputs);
  const GatherEngine<S, W> table = gather_engine<S, W>();
  const auto pack_row = functions_of<S>(gather_kernels_for<S>()).pack_row;
  const Call<S, W> call(g, axis_y, axis_x, form, table.pixels, table.vector_bytes, threads);
  const int64_t weight_elements = g.groups * call.weights_per_group;
  const int64_t bias_elements = epilogue.bias == nullptr ? 0 : g.groups * call.out_blocks * call.lanes;
  const CallScratch weight_memory(kSharedWeights, weight_elements * sizeof(W) + bias_elements * sizeof(T));
  W* const packed_weights = weight_memory.as<W>();
  // With fewer tiles than threads, several tasks share one, each with some of the output blocks; what they share is transformed again. As
  // many tasks as threads at most: one more would take as long as a whole tile.
  const int64_t tiles = call.count(g.groups);
  const int64_t splits = std::min(call.out_blocks, std::max<int64_t>(1, std::max(threads, 1) / tiles));
  pack_weights(call, strides, weight, packed_weights, threads, shares_of_weights(splits));
  T* bias = nullptr;
  if (bias_elements != 0) {
    bias = reinterpret_cast<T*>(packed_weights + weight_elements);
    pad_bias(static_cast<const S*>(epilogue.bias), g.groups, call.out_channels, call.out_blocks * call.lanes, bias);
  }
  const bool stream = std::is_same_v<S, float> && table.vector_bytes >= 32 && leaves_cache(g, y);
  parallel_tasks(tiles * splits, threads, [&](int64_t task) {
    const int64_t split = task / tiles;
    const TilePlace place = call.place(task % tiles, g.batch);
    const Blocks blocks{call.out_blocks * split / splits, call.out_blocks * (split + 1) / splits};
    const PieceRange rows = call.pieces_in(call.along_y, place.t, call.tile_t), columns = call.pieces_in(call.along_x, place.u, call.tile_u);
    TilePlace packed_at = place;  // from the first piece's first output on, its own or not
    packed_at.t = call.along_y[rows.begin].start;
    packed_at.u = call.along_x[columns.begin].start;
    T* packed = static_cast<T*>(scratch(kTileA, place.images * call.layout.image_stride * sizeof(T)));
    pack_tile(g, axis_y, axis_x, call.layout, packed_at, x, prologue, pack_row, packed);
    const std::vector<Piece> pieces = pieces_of(call, place, rows, columns);
    Ahead ahead(ceil_div(static_cast<int64_t>(pieces.size()), table.pixels) * (call.weights_per_group / call.lanes) / 4);
    if (splits == 1 && task + 1 < tiles) {  // most often this thread's next
      fetch_tile(ahead, g, axis_y, call.place(task + 1, g.batch), call.tile_t, call.tiles_u == 1, x, prologue);
    }
    // Of F(2x2), chunks of whole register blocks, so that only the last one pads (without odd ends, all points of it), and as equal as
    // that allows.
    const std::size_t count = pieces.size(), unit = form.outputs > 2 ? 1 : static_cast<std::size_t>(table.pixels);
    const std::size_t units = (count + unit - 1) / unit, chunks = ceil_div(static_cast<int64_t>(count), call.pieces);
    for (std::size_t c = 0; c < chunks; ++c) {
      const std::size_t first = units * c / chunks * unit, last = std::min(count, units * (c + 1) / chunks * unit);
      run_chunk(call, packed_at, pieces, first, last - first, blocks, packed, packed_weights + packed_at.group * call.weights_per_group, bias,
                y, epilogue, stream, ahead);
    }
  });
}

}  // namespace

template <class S>
void winograd_conv(const ConvGeometry& g, const AxisPlan& axis_y, const AxisPlan& axis_x, const WinogradForm& form,
                   const WeightStrides& strides, const S* x, const S* weight, S* y, const Epilogue& epilogue, const Prologue& prologue,
                   int threads) {
  if constexpr (std::is_same_v<S, Bf16>) {
    if (pair_kernels() != nullptr) {
      return winograd_in<Bf16, Bf16Pair>(g, axis_y, axis_x, form, strides, x, weight, y, epilogue, prologue, threads);
    }
  }
  winograd_in<S, Arithmetic<S>>(g, axis_y, axis_x, form, strides, x, weight, y, epilogue, prologue, threads);
}

#define GAN_FAST_WINOGRAD(S)                                                                                                       \
  template void winograd_conv<S>(const ConvGeometry&, const AxisPlan&, const AxisPlan&, const WinogradForm&, const WeightStrides&, \
                                 const S*, const S*, S*, const Epilogue&, const Prologue&, int);
GAN_FAST_WINOGRAD(float)
GAN_FAST_WINOGRAD(Bf16)
GAN_FAST_WINOGRAD(double)

}  // namespace gan_fast
