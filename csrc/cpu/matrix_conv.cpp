#include "matrix_conv.h"

#include <algorithm>

#include "common/parallel.h"
#include "common/plan.h"
#include "common/scratch.h"
#include "matrix_kernels.h"
#include "pair_kernels.h"
#include "tile.h"
#include "weights_block.h"

namespace gan_fast {
namespace {

constexpr int64_t kTileBytes = 512 * 1024;         // beside a panel of weights: CPUs with matrix registers have an L2 of 2 MB
constexpr int64_t kThreePartsBytes = 1024 * 1024;  // the same of floats, whose products take six times as long
constexpr int64_t kShallow = 32;                   // channels up to which steps may be pieces of a row of the kernel
constexpr int64_t kFewestRows = 4;                 // of a tile that is cut for the sake of threads
constexpr int64_t kPadWords = 16;                  // keeps plane strides off multiples of 4 KB, which would share L1 sets
constexpr double kSideBySideGain = 1.05;           // of registers, for lines that are stored apart
// Packed weights of a call beyond this are not near when they are multiplied. In three parts, fetching them ahead makes 512 -> 256 channels of
// 4x4 images 1.17 times as fast; with the few products of one part it costs as much as it saves, and where they are near anyway 10 %.
constexpr int64_t kNearWeights = 1 << 20;

// One word of a step: its first channel of two, and the tap; a tap of -1 stands for a weight of zero.
struct PanelWord {
  int64_t channel, kernel;
};

// Runs of positions that cover what a phase has in a tile of so many images, lines and columns. Each begins at the first position that none
// before it reaches, so gaps are left out.
struct Runs {
  int64_t lines, width, count;
  int64_t rows;                  // that some run needs, at most kMatrixRows
  std::vector<int64_t> in;       // offsets into the tile, padded to whole blocks
  std::vector<int64_t> row_out;  // of each row, from the phase's first output in the tile, or -1
};

struct Phase {
  const AxisPhase *y, *x;
  std::vector<Tap> taps;
  std::vector<int64_t> steps;     // offsets into the tile
  std::vector<PanelWord> words;   // of all steps
  int64_t panels;                 // where its panels start in the packed weights
  Runs whole;                     // those of a whole tile
};

// A row of the kernel, cut into steps.
struct RowPieces {
  int64_t steps, depth;
  bool pay;  // instead of a step for each tap

  RowPieces(const ConvGeometry& g, const AxisPlan& axis_y, const AxisPlan& axis_x) {
    const int64_t channels = g.in_channels / g.groups;
    const int64_t taps = axis_x.phases.empty() ? 0 : static_cast<int64_t>(axis_x.phases[0].taps.size());
    const int64_t words = std::max<int64_t>(1, taps * ceil_div(channels, 2));
    steps = ceil_div(words, kMatrixRows);
    depth = ceil_div(words, steps);
    pay = channels > 0 && channels <= kShallow && g.groups == 1 && axis_y.phases.size() * axis_x.phases.size() == 1 && g.dilation_w == 1 &&
          steps < std::max<int64_t>(taps, 2);
  }
};

struct Call : TileGrid {
  const ConvGeometry& g;
  const AxisPlan &axis_y, &axis_x;
  int64_t in_channels, out_channels, out_blocks;  // per group
  bool shallow, side_by_side;  // the latter: a tile's images, [row][column][image], and not [image][row][column]
  int64_t parts;           // of a word (matrix_kernels.h)
  int64_t pixel_words;     // of a packed pixel
  int64_t position_words;  // between the places of neighbouring outputs
  int64_t in_blocks;       // of kChannelBlock words
  int64_t depth;           // words of a step
  std::vector<Phase> phases;
  int64_t weights_per_group;
  TileLayout layout;
  int64_t column_positions, row_positions, image_positions;  // from an output to the next one of its row, of its column, of the next image
  int64_t tile_words;

  Call(const ConvGeometry& geometry, const AxisPlan& y, const AxisPlan& x, int64_t word_parts, int threads);
  void choose_tile(int threads);
  void lay_out();
  int64_t shared_zeros() const;
  void add_steps(Phase& phase);
  void add_shallow_steps(Phase& phase);
};

Call::Call(const ConvGeometry& geometry, const AxisPlan& y_plan, const AxisPlan& x_plan, int64_t word_parts, int threads)
    : g(geometry), axis_y(y_plan), axis_x(x_plan), parts(word_parts) {
  in_channels = g.in_channels / g.groups;
  out_channels = g.out_channels / g.groups;
  out_blocks = ceil_div(out_channels, kMatrixLanes);
  const int64_t in_words = ceil_div(in_channels, 2);
  in_blocks = ceil_div(in_words, kChannelBlock);
  const RowPieces row(g, axis_y, axis_x);
  shallow = row.pay;
  pixel_words = shallow ? in_words : kChannelBlock;
  position_words = shallow ? in_words * axis_x.planes : kChannelBlock;
  depth = shallow ? row.depth : std::clamp<int64_t>(in_words, 1, kMatrixRows);
  for (const AxisPhase& y : axis_y.phases) {
    for (const AxisPhase& x : axis_x.phases) {
      phases.push_back({&y, &x, phase_taps(y, x, axis_x.planes, g.kernel_w), {}, {}, 0, {}});
    }
  }
  choose_tile(threads);
  lay_out();
}

void Call::choose_tile(int threads) {
  const int64_t budget = (parts == 1 ? kTileBytes : kThreePartsBytes) / static_cast<int64_t>(sizeof(Bf16Pair));
  const int64_t per_position = parts * (shallow ? pixel_words : in_blocks * kChannelBlock) * axis_y.planes * axis_x.planes;
  tile_t = axis_y.max_count;
  tile_u = axis_x.max_count;
  const auto row = [&] { return std::max<int64_t>(1, per_position * (tile_u + axis_x.span - 1)); };
  const auto size = [&] { return row() * (tile_t + axis_y.span - 1); };
  if (size() > budget && tile_t > 1) tile_t = std::max<int64_t>(1, budget / row() - axis_y.span + 1);
  if (size() > budget) {
    const int64_t fitting = budget / std::max<int64_t>(1, per_position * (tile_t + axis_y.span - 1)) - axis_x.span + 1;
    tile_u = std::min(tile_u, std::max(kMatrixRows, fitting / kMatrixRows * kMatrixRows));
  }
  if (axis_y.max_count == 1) tile_u = share_columns(g, axis_x, tile_u, kMatrixRows, threads);
  tile_images = 1;
  if (tile_t == axis_y.max_count && tile_u == axis_x.max_count) {
    const int64_t fitting = std::max<int64_t>(1, budget / std::max<int64_t>(size(), 1));
    const int64_t most = std::min(fitting, std::max<int64_t>(1, g.batch / (4 * std::max(threads, 1))));
    // So many that their rows, side by side, fill whole registers; the most of those that are as good.
    const int64_t fewer = shallow ? 0 : least_of(0, most / 2, [&](int64_t n) {
      return busiest_thread(ceil_div(g.batch, most - n), axis_y.max_count * ceil_div((most - n) * axis_x.max_count, kMatrixRows), threads);
    });
    tile_images = most - fewer;
  }
  tiles_n = ceil_div(g.batch, tile_images);
  tiles_u = ceil_div(axis_x.max_count, tile_u);
  // Rows in even shares, and more of them if threads would be idle.
  const int64_t wanted = ceil_div(2 * static_cast<int64_t>(std::max(threads, 1)), g.groups * tiles_n * tiles_u);
  const int64_t most = std::max<int64_t>(1, axis_y.max_count / kFewestRows);
  tiles_t = std::max(ceil_div(axis_y.max_count, tile_t), threads == 1 ? 1 : std::min(wanted, most));
  tile_t = ceil_div(axis_y.max_count, tiles_t);
  tiles_t = ceil_div(axis_y.max_count, tile_t);
}

void Call::lay_out() {
  layout.rows = tile_t + axis_y.span - 1;
  layout.columns = tile_u + axis_x.span - 1;
  layout.row_pixels = layout.columns - (shallow ? 0 : shared_zeros());
  layout.planes = axis_y.planes * axis_x.planes;
  // Side by side if that fills more registers' rows: an image's lines of outputs lie apart then.
  const int64_t through = (tile_t - 1) * layout.row_pixels + tile_u;  // positions from an image's first to its last
  const int64_t apart = tile_images * ceil_div(through, kMatrixRows);
  const int64_t together = std::min(tile_t * ceil_div(tile_images * tile_u, kMatrixRows), ceil_div(tile_images * through, kMatrixRows));
  side_by_side = !shallow && static_cast<double>(together) * kSideBySideGain < static_cast<double>(apart);
  column_positions = side_by_side ? tile_images : 1;
  // The rows of a last run, a step's last words, and zeros that no row follows to share them reach over the end.
  const int64_t over = (kMatrixRows + (1 + layout.columns - layout.row_pixels) * column_positions) * std::max(position_words, kMatrixRows);
  if (shallow) {  // rows and columns of the input itself
    layout.rows *= axis_y.planes;
    layout.columns *= axis_x.planes;
    layout.image_stride = layout.rows * layout.columns * pixel_words;
    layout.plane_stride = tile_images * layout.image_stride;
    row_positions = axis_y.planes * layout.columns / axis_x.planes;
  } else {
    const int64_t image = layout.rows * layout.row_pixels * kChannelBlock;
    layout.pixel = column_positions * kChannelBlock;
    layout.image_stride = side_by_side ? kChannelBlock : image;
    layout.plane_stride = tile_images * image + kPadWords;
    row_positions = layout.row_pixels * column_positions;
  }
  image_positions = layout.image_stride / position_words;
  layout.parts.stride = (shallow ? 1 : layout.planes) * layout.plane_stride + (parts > 1 ? over : 0);
  layout.block_stride = parts * layout.parts.stride;
  tile_words = (shallow ? 1 : in_blocks) * layout.block_stride + over;
  weights_per_group = 0;
  for (Phase& phase : phases) {
    if (shallow) {
      add_shallow_steps(phase);
    } else {
      add_steps(phase);
    }
    phase.panels = weights_per_group;
    weights_per_group += static_cast<int64_t>(phase.words.size()) * parts * out_blocks * kMatrixLanes;
  }
}

// Columns of zeros that a packed row of whole width may share with the next one: it has them at its end, in every plane, and the next one
// at its beginning.
int64_t Call::shared_zeros() const {
  if (tile_u < axis_x.max_count) return 0;
  int64_t shared = layout.columns - tile_u;  // places of outputs are nobody else's
  for (int64_t plane = 0; plane < axis_x.planes; ++plane) {
    const auto columns_before = [&](int64_t in_column) {
      return std::clamp<int64_t>(ceil_div(std::max<int64_t>(in_column + axis_x.lead - plane, 0), axis_x.planes), 0, layout.columns);
    };
    shared = std::min({shared, columns_before(0), layout.columns - columns_before(g.in_w)});
  }
  return shared;
}

// A plane's taps follow each other: what they read of a channel block is the same but for a row and a column, and stays in L1.
void Call::add_steps(Phase& phase) {
  std::stable_sort(phase.taps.begin(), phase.taps.end(), [](const Tap& a, const Tap& b) { return a.plane < b.plane; });
  for (int64_t block = 0; block < in_blocks; ++block) {
    for (const Tap& tap : phase.taps) {
      phase.steps.push_back(block * layout.block_stride + tap.plane * layout.plane_stride +
                            (tap.dy * layout.row_pixels + tap.dx) * layout.pixel);
      for (int64_t w = 0; w < depth; ++w) phase.words.push_back({2 * (block * kChannelBlock + w), tap.kernel});
    }
  }
}

// A row's last step ends with the row: where it overlaps the one before, its weights are zero.
void Call::add_shallow_steps(Phase& phase) {
  std::vector<Tap> taps = phase.taps;
  order_by_place(taps, axis_y, axis_x);
  const std::size_t taps_x = phase.x->taps.size();
  const int64_t row_words = static_cast<int64_t>(taps_x) * pixel_words;
  for (std::size_t first = 0; first < taps.size(); first += taps_x) {
    const int64_t start = (row_of(taps[first], axis_y, axis_x) * layout.columns + column_of(taps[first], axis_x)) * pixel_words;
    for (int64_t done = 0; done < row_words; done += depth) {
      const int64_t begin = std::min(done, row_words - depth);
      phase.steps.push_back(start + begin);
      for (int64_t w = begin; w < begin + depth; ++w) {
        const Tap& tap = taps[first + static_cast<std::size_t>(w / pixel_words)];
        phase.words.push_back(w < done ? PanelWord{0, -1} : PanelWord{2 * (w % pixel_words), tap.kernel});
      }
    }
  }
}

// Word w of a tap of a block's lines, part by part.
void put_word(const Bf16* lines, const WeightsBlock& block, int64_t w, int64_t tap, Bf16Pair* out, const Parts&) {
  pack_word<Bf16Pair>(lines, block, w, tap, out);
}
void put_word(const float* lines, const WeightsBlock& block, int64_t w, int64_t tap, Bf16Pair* out, const Parts& parts) {
  const float* const first = lines + (2 * w * block.taps + tap) * block.lanes;
  matrix_kernels()->split_lines(first, 2 * w + 1 < block.channels ? first + block.taps * block.lanes : nullptr, out, parts);
}

// [phase][output block][step][part][word][lane].
template <class S>
void pack_weights(const Call& call, const WeightStrides& strides, const S* weight, Bf16Pair* packed, int threads, Shares shares) {
  const int64_t all_taps = call.g.kernel_h * call.g.kernel_w, blocks = std::max<int64_t>(call.in_blocks, 1);
  const int64_t part = call.depth * kMatrixLanes;
  parallel_tasks(call.g.groups * call.out_blocks * blocks, threads, shares, [&](int64_t task) {
    const int64_t block = task % blocks, unit = task / blocks % call.out_blocks, group = task / blocks / call.out_blocks;
    const int64_t first = block * 2 * kChannelBlock, channels = std::min(2 * kChannelBlock, 2 * ceil_div(call.in_channels - first, 2));
    const int64_t first_out = unit * kMatrixLanes;
    const WeightsBlock lines{std::min(channels, call.in_channels - first), all_taps, kMatrixLanes,
                             std::min(kMatrixLanes, call.out_channels - first_out)};
    const S* const weights = weight_lines(weight + group * strides.group + first_out * strides.out + first * strides.in, strides, lines);
    for (const Phase& phase : call.phases) {
      const int64_t words = static_cast<int64_t>(phase.words.size()), own = words / blocks;
      Bf16Pair* const panel = packed + group * call.weights_per_group + phase.panels + unit * words * call.parts * kMatrixLanes;
      for (int64_t step = block * own; step < (block + 1) * own; step += call.depth) {
        for (int64_t w = 0; w < call.depth; ++w) {
          const PanelWord& word = phase.words[step + w];
          Bf16Pair* const out = panel + (step * call.parts + w) * kMatrixLanes;
          if (word.kernel < 0 || word.channel >= first + channels) {
            for (int64_t n = 0; n < call.parts; ++n) std::fill_n(out + n * part, kMatrixLanes, Bf16Pair{0});
          } else {
            put_word(weights, lines, (word.channel - first) / 2, word.kernel, out, {part, call.layout.parts.lost});
          }
        }
      }
    }
  });
}

struct Tile : TilePlace {
  int64_t block_begin, block_end;
};

Runs make_runs(const Call& call, const Phase& phase, int64_t images, int64_t lines, int64_t width) {
  const ConvGeometry& g = call.g;
  Runs runs{lines, width, 0, 0, {}, {}};
  int64_t end = 0;  // of what the last run reaches
  const auto add = [&](int64_t n, int64_t t, int64_t u) {
    const int64_t position = n * call.image_positions + t * call.row_positions + u * call.column_positions;
    if (position >= end) {
      runs.in.push_back(position * call.position_words);
      runs.row_out.resize(runs.row_out.size() + kMatrixRows, -1);
      end = position + kMatrixRows;
    }
    const int64_t row = position - (end - kMatrixRows);
    runs.row_out[runs.row_out.size() - kMatrixRows + row] =
        ((n * g.out_h + t * phase.y->out_step) * g.out_w + u * phase.x->out_step) * g.out_channels;
    runs.rows = std::max(runs.rows, row + 1);
  };
  // In the order in which they lie in the tile.
  const int64_t together = call.side_by_side ? images : 1;
  for (int64_t first = 0; first < images; first += together) {
    for (int64_t t = 0; t < lines; ++t) {
      for (int64_t u = 0; u < width; ++u) {
        for (int64_t n = first; n < first + together; ++n) add(n, t, u);
      }
    }
  }
  runs.count = static_cast<int64_t>(runs.in.size());
  constexpr int64_t kWhole = matrix_runs(1);  // as many as the kind of block with more of them wants
  runs.in.resize(ceil_div(runs.count, kWhole) * kWhole, 0);
  runs.row_out.resize(runs.in.size() * kMatrixRows, -1);
  return runs;
}

template <class S>
void pack_shallow(const Call& call, const TileLayout& layout, const Tile& tile, const S* x, const Prologue& prologue, Bf16Pair* packed) {
  const ConvGeometry& g = call.g;
  const S* y = static_cast<const S*>(prologue.y);
  const auto pack_pixels = functions_of<S>(*matrix_kernels()).pack_pixels;
  const int64_t column = tile.u * call.axis_x.planes - call.axis_x.lead;  // of the input, of the tile's first
  MatrixPixels<S> row{};
  row.columns = layout.columns;
  row.first = std::clamp<int64_t>(-column, 0, row.columns);
  row.last = std::clamp<int64_t>(g.in_w - column, row.first, row.columns);
  row.elements = row.pixel_stride = g.in_channels;
  row.parts = layout.parts;
  row.prologue_activation = prologue.activation;
  row.prologue_slope = static_cast<float>(prologue.slope);
  for (int64_t n = 0; n < tile.images; ++n) {
    for (int64_t r = 0; r < layout.rows; ++r) {
      const int64_t in_row = tile.t * call.axis_y.planes + r - call.axis_y.lead;
      const bool inside = in_row >= 0 && in_row < g.in_h;
      const int64_t at = (((tile.image + n) * g.in_h + in_row) * g.in_w + column + row.first) * g.in_channels;
      row.input = inside ? x + at : nullptr;
      row.prologue_y = inside && y != nullptr ? y + at : nullptr;
      row.out = packed + n * layout.image_stride + r * layout.columns * call.pixel_words;
      pack_pixels(row);
    }
  }
}

template <class S>
void run_phase(const Call& call, const Tile& tile, const Phase& phase, const Bf16Pair* packed, const Bf16Pair* weights, const float* bias,
               S* y, float* wide, const Epilogue& epilogue) {
  const ConvGeometry& g = call.g;
  const int64_t lines = std::min(call.tile_t, phase.y->count - tile.t), width = std::min(call.tile_u, phase.x->count - tile.u);
  const bool whole = tile.images == call.tile_images && lines == phase.whole.lines && width == phase.whole.width;
  const Runs own = whole ? Runs{} : make_runs(call, phase, tile.images, lines, width);
  const Runs& runs = whole ? phase.whole : own;
  const int64_t first = ((tile.image * g.out_h + phase.y->out_start + tile.t * phase.y->out_step) * g.out_w + phase.x->out_start +
                         tile.u * phase.x->out_step) * g.out_channels + tile.group * call.out_channels;
  MatrixJob<S> job{};
  job.tile = packed;
  job.tile_part = call.layout.parts.stride;
  job.position_words = call.position_words;
  job.run_in = runs.in.data();
  job.row_out = runs.row_out.data();
  job.steps = phase.steps.data();
  job.step_count = static_cast<int64_t>(phase.steps.size());
  job.rows = static_cast<int>(runs.rows);
  job.depth = static_cast<int>(call.depth);
  job.sums = static_cast<float*>(scratch(kTileC, kMatrixSums * sizeof(float)));
  job.fetch = call.parts > 1 && call.weights_per_group * static_cast<int64_t>(sizeof(Bf16Pair)) > kNearWeights;
  // In bf16 a layer alone would be faster too, but the step of `article` 6 % slower: what follows finds its input in the last cache.
  job.stream = call.parts > 1 && y != nullptr && leaves_cache(g, y);
  job.activation = epilogue.activation;
  job.slope = static_cast<float>(epilogue.slope);
  for (int64_t block = tile.block_begin; block < tile.block_end; ++block) {
    job.output = y == nullptr ? nullptr : y + first + block * kMatrixLanes;
    job.wide_output = wide == nullptr ? nullptr : wide + first + block * kMatrixLanes;
    job.out_lanes = std::min(kMatrixLanes, call.out_channels - block * kMatrixLanes);
    job.blocks = ceil_div(runs.count, matrix_runs(job.out_lanes));
    job.bias = bias == nullptr ? nullptr : bias + (tile.group * call.out_blocks + block) * kMatrixLanes;
    job.panel = weights + phase.panels + block * job.step_count * call.parts * call.depth * kMatrixLanes;
    functions_of<S>(*matrix_kernels()).multiply(job);
  }
}

// How a tile's rows are packed.
template <class S>
auto row_packer() {
  if constexpr (kParts<S> == 1) {
    return pair_kernels()->gather.pack_row;
  } else {
    return matrix_kernels()->split_row;
  }
}

}  // namespace

// Measured on 2 cores of a Granite Rapids, whose registers make 1.6 products of floats in the time of one of its vectors' multiply-adds. F(4x4)
// of 3 and 5 taps saves more. Words are mostly empty where channels are few, and then the packing of three parts takes longer than the products.
bool float_parts_pay(const ConvGeometry& g, const AxisPlan& axis_y, const AxisPlan& axis_x, const WinogradForm& form) {
  constexpr int64_t kFewestTerms = 96, kFewestOutputs = 3, kMostPadding = 4;
  constexpr double kMostSaving = 2.6;  // of products, by Winograd
  if (form.outputs == 4 && winograd_with(4, axis_y, axis_x).saving > kMostSaving) return false;
  if (matrix_few_pays(g, axis_x)) return g.out_channels >= kFewestOutputs;
  int64_t taps = 0;
  for (const AxisPhase& y : axis_y.phases) {
    for (const AxisPhase& x : axis_x.phases) taps = std::max(taps, static_cast<int64_t>(y.taps.size() * x.taps.size()));
  }
  const int64_t channels = g.in_channels / g.groups;
  if (taps * channels < kFewestTerms) return false;
  const RowPieces row(g, axis_y, axis_x);
  const int64_t blocks = ceil_div(channels, 2 * kChannelBlock);
  const int64_t words = row.pay ? g.kernel_h * row.steps * row.depth : taps * blocks * kChannelBlock;
  return 2 * words <= kMostPadding * taps * channels;
}

template <class S>
bool matrix_conv(const ConvGeometry& g, const AxisPlan& axis_y, const AxisPlan& axis_x, const WeightStrides& strides, const S* x,
                 const S* weight, S* y, float* wide, const Epilogue& epilogue, const Prologue& prologue, int threads) {
  note_parts(kParts<S>);
  Call call(g, axis_y, axis_x, kParts<S>, threads);
  int lost = 0;
  call.layout.parts.lost = &lost;
  const auto any_lost = [&] { return kParts<S> > 1 && __atomic_load_n(&lost, __ATOMIC_RELAXED) != 0; };
  for (Phase& phase : call.phases) {
    phase.whole = make_runs(call, phase, call.tile_images, std::min(call.tile_t, phase.y->count), std::min(call.tile_u, phase.x->count));
  }
  const int64_t words = g.groups * call.weights_per_group, biases = epilogue.bias == nullptr ? 0 : g.groups * call.out_blocks * kMatrixLanes;
  const CallScratch weight_memory(kSharedWeights, words * sizeof(Bf16Pair) + (biases + 1) * sizeof(float));
  Bf16Pair* const packed_weights = weight_memory.as<Bf16Pair>();
  const int64_t tiles = call.count(g.groups), splits = output_splits(tiles, call.out_blocks, threads);
  pack_weights(call, strides, weight, packed_weights, threads, shares_of_weights(splits));
  float* bias = nullptr;
  if (biases != 0) {
    bias = reinterpret_cast<float*>(packed_weights + words);
    pad_bias(static_cast<const S*>(epilogue.bias), g.groups, call.out_channels, call.out_blocks * kMatrixLanes, bias);
  }
  parallel_tasks(tiles * splits, threads, [&](int64_t task) {
    if (any_lost()) return;
    const int64_t split = task / tiles;
    const Tile tile{call.place(task % tiles, g.batch), call.out_blocks * split / splits, call.out_blocks * (split + 1) / splits};
    Bf16Pair* packed = static_cast<Bf16Pair*>(scratch(kTileA, call.tile_words * sizeof(Bf16Pair)));
    // Not the rows behind the last output: how far a tile reaches depends on the threads, and what it holds may decide who serves the call.
    TileLayout layout = call.layout;
    const int64_t rows = axis_y.max_count - tile.t + axis_y.span - 1;
    layout.rows = std::min(layout.rows, call.shallow ? rows * axis_y.planes : rows);
    if (call.shallow) {
      pack_shallow(call, layout, tile, x, prologue, packed);
    } else {
      pack_tile(g, axis_y, axis_x, layout, tile, x, prologue, row_packer<S>(), packed);
    }
    const Bf16Pair* weights = packed_weights + tile.group * call.weights_per_group;
    for (const Phase& phase : call.phases) {
      if (tile.t < phase.y->count && tile.u < phase.x->count) run_phase(call, tile, phase, packed, weights, bias, y, wide, epilogue);
    }
  });
  return !any_lost();
}

template bool matrix_conv<Bf16>(const ConvGeometry&, const AxisPlan&, const AxisPlan&, const WeightStrides&, const Bf16*, const Bf16*, Bf16*,
                                float*, const Epilogue&, const Prologue&, int);
template bool matrix_conv<float>(const ConvGeometry&, const AxisPlan&, const AxisPlan&, const WeightStrides&, const float*, const float*,
                                 float*, float*, const Epilogue&, const Prologue&, int);

}  // namespace gan_fast
