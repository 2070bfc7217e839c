// The weight gradient on matrix registers (matrix_kernels.h): for each tap, 16 channels of the dense operand x 16 of the gathered one.
//
// K runs over positions. Both operands are packed [channel block][part][plane][row][column][image][16 channels], zeros where the gathered one's rows
// reach over the edge: so a tap is an offset. A step is 16 positions: of a row, filled up with zeros in the dense operand, or over the ends
// of rows, with as many zeros between the dense one's as make its rows as long as the gathered one's; whichever takes fewer. The dense one's
// steps are then transposed. A word is one position of two images. Zeros are multiplied too: what is not a number in the
// gathered operand reaches the gradients of all taps of its channel.
#include <algorithm>
#include <vector>

#include "common/parallel.h"
#include "common/plan.h"
#include "common/scratch.h"
#include "gather_plan.h"
#include "matrix_kernels.h"
#include "tile.h"
#include "weight_grad_problem.h"

namespace gan_fast {
namespace weight_grad {
namespace {

constexpr int64_t kSumsBytes = 640 * 1024;  // of one task: with the operands below, in an L2 of 2 MB
constexpr int64_t kOperandBytes = 512 * 1024;
constexpr int64_t kRows = kMatrixRows, kStepWords = kRows * kRows, kBlockSums = kRows * kRows;
// Images are split by shape alone, as in conv_weight_grad.cpp; a part's sums cost as much as some steps of K.
constexpr int64_t kWantedTasks = 8;
constexpr int64_t kFewestSteps = 16;

// The steps of a tile's rows, whose pixels are of so many images.
struct Steps {
  int64_t lines, row;          // as many lines of so many steps: the tile's, or one that runs over the ends of all rows
  int64_t row_words;           // of the dense operand, from a row to the next
  int64_t count() const { return lines * row; }

  Steps(int64_t images, int64_t t, int64_t u, int64_t columns) : lines(t), row(ceil_div(u * images, kRows)), row_words(row * kStepWords) {
    const int64_t through = ceil_div(((t - 1) * columns + u) * images, kRows);
    if (through >= count()) return;
    lines = 1;
    row = through;
    row_words = columns * images * kRows;
  }
};

template <class S>
struct Call {
  const Problem<S, Bf16Pair>& p;
  AxisPlan axis_y, axis_x;
  int64_t m_channels, n_channels, m_blocks, n_blocks;  // of the gathered and the dense operand
  int64_t m_step, n_step, m_ranges, n_ranges, splits, members;
  Tiling tile;
  int64_t planes, columns;                      // of a tile
  int64_t plane_words, gathered_part, gathered_block;
  int64_t dense_part, dense_block;
  int64_t range_sums;
  int* lost;  // of Parts

  Call(const Problem<S, Bf16Pair>& problem, int* lost_digits);
  int64_t ranges() const { return p.g.groups * m_ranges * n_ranges; }
  // Of a range's sums: [dense block][gathered block][tap][dense channel][gathered channel].
  int64_t sums_at(int64_t n, int64_t m, int64_t tap) const { return ((n * m_step + m) * p.taps + tap) * kBlockSums; }
};

template <class S>
Call<S>::Call(const Problem<S, Bf16Pair>& problem, int* lost_digits) : p(problem), lost(lost_digits) {
  const ConvGeometry& g = p.g;
  axis_y = plan_conv_axis(p.gathered.h, p.dense.h, g.kernel_h, g.stride_h, g.pad_h, g.dilation_h);
  axis_x = plan_conv_axis(p.gathered.w, p.dense.w, g.kernel_w, g.stride_w, g.pad_w, g.dilation_w);
  m_channels = p.gathered.channels;
  n_channels = p.dense.channels;
  m_blocks = ceil_div(m_channels, kRows);
  n_blocks = ceil_div(n_channels, kRows);
  planes = axis_y.planes * axis_x.planes;
  members = ceil_div(g.batch, 2);

  SumRanges cut(g.groups, n_blocks, m_blocks, kRows, kRows);
  cut.fit(p.taps * kBlockSums * static_cast<int64_t>(sizeof(float)), kSumsBytes);
  const int64_t member_steps = ceil_div(p.dense.h * (p.dense.w + axis_x.span - 1), kRows);
  splits = std::clamp<int64_t>(members * member_steps / kFewestSteps, 1, std::min(members, ceil_div(kWantedTasks, cut.count())));
  const auto words = [&](int64_t images, int64_t t, int64_t u) {
    const int64_t row = u + axis_x.span - 1;
    return kParts<S> * images * kRows * row * (cut.m_step * planes * (t + axis_y.span - 1) + cut.n_step * t);
  };
  tile = choose_tile(ceil_div(members, splits), p.dense.h, p.dense.w, kOperandBytes / static_cast<int64_t>(sizeof(Bf16Pair)), words);
  // So many images that their rows, side by side, fill whole steps.
  tile.images = least_of((tile.images + 1) / 2, tile.images, [&](int64_t images) {
    return ceil_div(ceil_div(members, splits), images) * Steps(images, tile.t, tile.u, tile.u + axis_x.span - 1).count();
  });
  cut.spread(splits, p.threads);
  n_step = cut.n_step;
  m_step = cut.m_step;
  n_ranges = cut.n_ranges();
  m_ranges = cut.m_ranges();
  columns = tile.u + axis_x.span - 1;
  plane_words = (tile.t + axis_y.span - 1) * columns * tile.images * kRows;
  gathered_part = planes * plane_words + kStepWords;  // the last step may reach over the end
  gathered_block = kParts<S> * gathered_part;
  dense_part = Steps(tile.images, tile.t, tile.u, columns).count() * kStepWords + kRows;  // off multiples of 4 KB, which would share L1 sets
  dense_block = kParts<S> * dense_part;
  range_sums = n_step * m_step * p.taps * kBlockSums;
}

struct Range {
  int64_t group, m_first, m_last, n_first, n_last;  // of blocks
};

// Where a tile lies in the dense operand.
struct Place {
  int64_t member, images, t, u, lines, length;  // a member is a pair of images
};

template <class S>
void pack_gathered(const Call<S>& call, const Range& range, const Place& place, Bf16Pair* packed) {
  const Problem<S, Bf16Pair>& p = call.p;
  const int64_t first = range.m_first * kRows, count = std::min(range.m_last * kRows, call.m_channels) - first;
  const int64_t pixel = place.images * kRows, row_words = call.columns * pixel;
  const int64_t rows = place.lines + call.axis_y.span - 1, columns = place.length + call.axis_x.span - 1;
  const int64_t copies = (range.m_last - range.m_first) * kParts<S>;  // blocks, and their parts
  // What the last step reads behind packed rows is multiplied by zeros, so it must be numbers. Before packing: it may lie in the next plane.
  for (int64_t copy = 0; copy < copies; ++copy) {
    for (int64_t plane = 0; plane < call.planes; ++plane) {
      std::fill_n(packed + copy * call.gathered_part + plane * call.plane_words + rows * row_words, kStepWords, Bf16Pair{0});
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t plane = 0; plane < call.planes; ++plane) {
      const int64_t py = plane / call.axis_x.planes, px = plane % call.axis_x.planes;
      Bf16Pair* const line = packed + plane * call.plane_words + r * row_words;
      for (int64_t i = 0; i < place.images; ++i) {
        const int64_t image = (place.member + i) * 2;
        p.pack_line(p.gathered, image, image + 1 < p.g.batch, (place.t + r) * call.axis_y.planes + py - call.axis_y.lead,
                    place.u * call.axis_x.planes + px - call.axis_x.lead, call.axis_x.planes, columns, range.group * call.m_channels + first,
                    count, kRows, line + i * kRows, pixel, call.gathered_block, {call.gathered_part, call.lost});
      }
      for (int64_t copy = 0; place.length < call.tile.u && copy < copies; ++copy) {
        Bf16Pair* const row = line + copy * call.gathered_part;
        std::fill(row + columns * pixel, row + row_words, Bf16Pair{0});
      }
    }
  }
}

template <class S>
void pack_dense(const Call<S>& call, const Range& range, const Place& place, const Steps& steps, Bf16Pair* packed) {
  const Problem<S, Bf16Pair>& p = call.p;
  const int64_t first = range.n_first * kRows, count = std::min(range.n_last * kRows, call.n_channels) - first;
  const int64_t copies = (range.n_last - range.n_first) * kParts<S>, pixel = place.images * kRows;
  for (int64_t r = 0; r < place.lines; ++r) {
    Bf16Pair* const line = packed + r * steps.row_words;
    for (int64_t i = 0; i < place.images; ++i) {
      const int64_t image = (place.member + i) * 2;
      p.pack_line(p.dense, image, image + 1 < p.g.batch, place.t + r, place.u, 1, place.length, range.group * call.n_channels + first, count,
                  kRows, line + i * kRows, pixel, call.dense_block, {call.dense_part, call.lost});
    }
    const int64_t end = r + 1 < place.lines ? steps.row_words : steps.count() * kStepWords - r * steps.row_words;
    for (int64_t copy = 0; copy < copies; ++copy) {
      Bf16Pair* const row = line + copy * call.dense_part;
      std::fill(row + place.length * pixel, row + end, Bf16Pair{0});
    }
  }
  for (int64_t copy = 0; copy < copies; ++copy) matrix_kernels()->transpose(packed + copy * call.dense_part, steps.count());
}

// Adds the products of a packed tile to the sums. The taps of a plane follow each other: what they read of both operands is the same.
template <class S>
void multiply_tile(const Call<S>& call, const Range& range, const Place& place, const Steps& steps, const Bf16Pair* gathered,
                   const Bf16Pair* dense, float* sums) {
  struct Operand {
    int64_t at, sums;
  };
  const auto& taps_y = call.axis_y.phases[0].taps;
  const auto& taps_x = call.axis_x.phases[0].taps;
  const int64_t m_count = range.m_last - range.m_first, pixel = place.images * kRows;
  std::vector<std::vector<Operand>> planes(call.planes);
  for (int64_t m = 0; m < m_count; ++m) {
    for (const AxisTap& ty : taps_y) {
      for (const AxisTap& tx : taps_x) {
        const int64_t plane = ty.plane * call.axis_x.planes + tx.plane;
        planes[plane].push_back({m * call.gathered_block + plane * call.plane_words + (ty.offset * call.columns + tx.offset) * pixel,
                                 call.sums_at(0, m, ty.kernel * call.p.g.kernel_w + tx.kernel)});
      }
    }
  }
  MatrixOuterJob<S> job{};
  job.a_part = call.dense_part;
  job.b_part = call.gathered_part;
  job.a_line = steps.row_words;
  job.b_line = call.columns * pixel;
  job.lines = steps.lines;
  job.steps = steps.row;
  for (int64_t n = 0; n < range.n_last - range.n_first; ++n) {
    job.a = dense + n * call.dense_block;
    for (const auto& operands : planes) {
      const int64_t all = static_cast<int64_t>(operands.size()), groups = ceil_div(all, int64_t{kMatrixOperands<S>});
      for (int64_t group = 0; group < groups; ++group) {
        const int64_t begin = all * group / groups;
        job.count = static_cast<int>(all * (group + 1) / groups - begin);
        for (int i = 0; i < job.count; ++i) {
          job.b[i] = gathered + operands[begin + i].at;
          job.sums[i] = sums + call.sums_at(n, 0, 0) + operands[begin + i].sums;
        }
        functions_of<S>(*matrix_kernels()).outer(job);
      }
    }
  }
}

}  // namespace

template <class S>
bool matrix(const Problem<S, Bf16Pair>& p, S* grad_weight) {
  note_parts(kParts<S>);
  int lost = 0;
  const Call<S> call(p, &lost);
  const auto any_lost = [&] { return kParts<S> > 1 && __atomic_load_n(&lost, __ATOMIC_RELAXED) != 0; };
  const int64_t ranges = call.ranges(), tasks = ranges * call.splits;
  const CallScratch sums_memory(kPartialSums, tasks * call.range_sums * sizeof(float));
  float* const partial = sums_memory.as<float>();
  parallel_tasks(tasks, p.threads, [&](int64_t task) {
    const int64_t split = task / ranges, index = task % ranges;
    Range range{};
    range.n_first = index % call.n_ranges * call.n_step;
    range.n_last = std::min(call.n_blocks, range.n_first + call.n_step);
    range.m_first = index / call.n_ranges % call.m_ranges * call.m_step;
    range.m_last = std::min(call.m_blocks, range.m_first + call.m_step);
    range.group = index / call.n_ranges / call.m_ranges;
    float* sums = partial + task * call.range_sums;
    std::fill(sums, sums + call.range_sums, 0.0f);
    Bf16Pair* gathered = static_cast<Bf16Pair*>(scratch(kTileA, call.m_step * call.gathered_block * sizeof(Bf16Pair)));
    Bf16Pair* dense = static_cast<Bf16Pair*>(scratch(kTileB, call.n_step * call.dense_block * sizeof(Bf16Pair)));
    const int64_t end = call.members * (split + 1) / call.splits;
    Place place{};
    for (place.member = call.members * split / call.splits; place.member < end && !any_lost(); place.member += call.tile.images) {
      place.images = std::min(call.tile.images, end - place.member);
      for (place.t = 0; place.t < p.dense.h; place.t += call.tile.t) {
        place.lines = std::min(call.tile.t, p.dense.h - place.t);
        for (place.u = 0; place.u < p.dense.w; place.u += call.tile.u) {
          place.length = std::min(call.tile.u, p.dense.w - place.u);
          pack_gathered(call, range, place, gathered);
          const Steps steps(place.images, place.lines, place.length, call.columns);
          pack_dense(call, range, place, steps, dense);
          multiply_tile(call, range, place, steps, gathered, dense, sums);
        }
      }
    }
  });

  if (any_lost()) return false;
  parallel_tasks(p.g.groups * call.n_blocks * call.m_blocks, p.threads, [&](int64_t task) {
    const int64_t m = task % call.m_blocks, n = task / call.m_blocks % call.n_blocks, group = task / call.m_blocks / call.n_blocks;
    const int64_t range = (group * call.m_ranges + m / call.m_step) * call.n_ranges + n / call.n_step;
    const int64_t n_valid = std::min(kRows, call.n_channels - n * kRows), m_valid = std::min(kRows, call.m_channels - m * kRows);
    const float* block = partial + range * call.range_sums + call.sums_at(n % call.n_step, m % call.m_step, 0);
    for (int64_t j = 0; j < n_valid; ++j) {
      S* const out = grad_weight + (group * call.n_channels + n * kRows + j) * call.m_channels * p.taps + m * kRows * p.channel_step;
      functions_of<S>(*matrix_kernels()).store_gradient({block + j * kRows, kBlockSums, ranges * call.range_sums, call.splits, p.taps,
                                                         m_valid, out, p.channel_step, p.tap_step});
    }
  });
  return true;
}

template bool matrix<Bf16>(const Problem<Bf16, Bf16Pair>&, Bf16*);
template bool matrix<float>(const Problem<float, Bf16Pair>&, float*);

}  // namespace weight_grad
}  // namespace gan_fast
