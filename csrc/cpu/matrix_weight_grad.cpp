// The weight gradient on matrix registers (matrix_kernels.h): for each tap, 32 channels of the gathered operand x 32 of the dense one.
//
// K runs over positions: the gathered operand is packed [channel][plane][row][column], the dense one [row][column][lane] with rows of the
// same length, zero behind the last pixel. So a tap is an offset, and a step of K may reach over the ends of rows. A word is one
// position of two images.
#include <algorithm>

#include "common/parallel.h"
#include "common/scratch.h"
#include "gather_plan.h"
#include "matrix_kernels.h"
#include "weight_grad_problem.h"

namespace gan_fast {
namespace weight_grad {
namespace {

constexpr int64_t kSumsBytes = 640 * 1024;      // of one task: with the operands below, in an L2 of 2 MB
constexpr int64_t kOperandBytes = 512 * 1024;
constexpr int64_t kBlockChannels = 2 * kMatrixRows;
// Images are split by shape alone, as in conv_weight_grad.cpp.
constexpr int64_t kWantedTasks = 8;

struct Call {
  const Problem<Bf16, Bf16Pair>& p;
  AxisPlan axis_y, axis_x;
  int64_t m_channels, n_channels, m_blocks, n_blocks;
  int64_t m_step, n_step, m_ranges, n_ranges, splits, members;
  Tiling tile;
  int64_t planes, rows, columns;           // of a tile of the gathered operand
  int64_t a_plane, a_image, a_channel;     // in words
  int64_t b_image, b_block;
  int64_t block_sums, range_sums;

  explicit Call(const Problem<Bf16, Bf16Pair>& problem);
  int64_t steps(int64_t lines, int64_t length) const { return ceil_div((lines - 1) * columns + length, kMatrixRows); }
  int64_t ranges() const { return p.g.groups * m_ranges * n_ranges; }
};

Call::Call(const Problem<Bf16, Bf16Pair>& problem) : p(problem) {
  const ConvGeometry& g = p.g;
  axis_y = plan_conv_axis(p.gathered.h, p.dense.h, g.kernel_h, g.stride_h, g.pad_h, g.dilation_h);
  axis_x = plan_conv_axis(p.gathered.w, p.dense.w, g.kernel_w, g.stride_w, g.pad_w, g.dilation_w);
  m_channels = p.gathered.channels;
  n_channels = p.dense.channels;
  m_blocks = ceil_div(m_channels, kBlockChannels);
  n_blocks = ceil_div(n_channels, kMatrixLanes);
  planes = axis_y.planes * axis_x.planes;
  block_sums = kBlockChannels * kMatrixLanes;
  members = ceil_div(g.batch, 2);

  m_step = m_blocks;
  n_step = n_blocks;
  const auto halve_range = [&] {
    int64_t& longer = m_step == 1 || (n_step > 1 && n_step >= m_step) ? n_step : m_step;
    longer = ceil_div(longer, 2);
  };
  const auto ranges_now = [&] { return g.groups * ceil_div(n_blocks, n_step) * ceil_div(m_blocks, m_step); };
  while (n_step * m_step > 1 && n_step * m_step * p.taps * block_sums * static_cast<int64_t>(sizeof(float)) > kSumsBytes) halve_range();
  splits = std::min(members, ceil_div(kWantedTasks, ranges_now()));
  const auto words = [&](int64_t images, int64_t t, int64_t u) {
    const int64_t row = u + axis_x.span - 1;
    return images * (m_step * kBlockChannels * planes * (t + axis_y.span - 1) * row + n_step * kMatrixLanes * t * row);
  };
  tile = choose_tile(ceil_div(members, splits), p.dense.h, p.dense.w, kOperandBytes / static_cast<int64_t>(sizeof(Bf16Pair)), words);
  // Smaller ranges for threads that would be idle change nothing that is added to anything.
  const auto longest = [&] { return ceil_div(ranges_now() * splits, std::max(p.threads, 1)) * n_step * m_step; };
  while (n_step * m_step > 1 && ranges_now() * splits < p.threads) {
    const int64_t n = n_step, m = m_step, before = longest();
    halve_range();
    if (longest() >= before) {
      n_step = n;
      m_step = m;
      break;
    }
  }
  n_ranges = ceil_div(n_blocks, n_step);
  m_ranges = ceil_div(m_blocks, m_step);
  rows = tile.t + axis_y.span - 1;
  columns = tile.u + axis_x.span - 1;
  // A step's words may reach over the end of a plane, by less than a register's; an odd number of lines of L1 between channels.
  a_plane = rows * columns;
  a_image = planes * a_plane;
  a_channel = ceil_div(tile.images * a_image + kMatrixRows, 2 * kMatrixRows) * 2 * kMatrixRows + kMatrixRows;
  b_image = steps(tile.t, tile.u) * kMatrixRows * kMatrixLanes;
  b_block = tile.images * b_image + kMatrixLanes;
  range_sums = n_step * p.taps * m_step * block_sums;
}

struct Range {
  int64_t group, m_first, m_last, n_first, n_last;
};

// Packs a tile of `images` pairs and adds its products to the sums.
void add_tile(const Call& call, const Range& range, int64_t member, int64_t images, int64_t t, int64_t u, Bf16Pair* a, Bf16Pair* b,
              float* sums) {
  const Problem<Bf16, Bf16Pair>& p = call.p;
  const MatrixKernels& run = *matrix_kernels();
  const int64_t lines = std::min(call.tile.t, p.dense.h - t), length = std::min(call.tile.u, p.dense.w - u);
  const int64_t m_channel = range.m_first * kBlockChannels, n_channel = range.n_first * kMatrixLanes;
  const int64_t m_count = std::min(range.m_last * kBlockChannels, call.m_channels) - m_channel;
  const int64_t n_count = std::min(range.n_last * kMatrixLanes, call.n_channels) - n_channel;
  // What the last steps read behind packed rows is multiplied by zeros, so it must be numbers. Before packing: it may lie in the next plane.
  const int64_t packed_plane = (lines + call.axis_y.span - 1) * call.columns;
  for (int64_t c = 0; c < ceil_div(m_count, kMatrixRows) * kMatrixRows; ++c) {
    Bf16Pair* const channel = a + c * call.a_channel;
    for (int64_t i = 0; packed_plane < call.a_plane && i < images * call.planes; ++i) {
      std::fill_n(channel + i * call.a_plane + packed_plane, kMatrixRows, Bf16Pair{0});
    }
    std::fill_n(channel + images * call.a_image, kMatrixRows, Bf16Pair{0});
  }
  for (int64_t i = 0; i < images; ++i) {
    const int64_t image = (member + i) * 2;
    const bool second = image + 1 < p.g.batch;
    MatrixPositions job{};
    job.second = second ? p.gathered.h * p.gathered.w * p.gathered.all_channels : 0;
    job.pixel_stride = p.gathered.all_channels;
    job.step = call.axis_x.planes;
    job.width = p.gathered.w;
    job.columns = call.columns;
    job.channels = m_count;
    job.out_channel = call.a_channel;
    job.prologue_activation = p.prologue.activation;
    job.prologue_slope = static_cast<float>(p.prologue.slope);
    for (int64_t r = 0; r < lines + call.axis_y.span - 1; ++r) {
      for (int64_t plane = 0; plane < call.planes; ++plane) {
        const int64_t py = plane / call.axis_x.planes, px = plane % call.axis_x.planes;
        const int64_t row = (t + r) * call.axis_y.planes + py - call.axis_y.lead;
        const bool inside = row >= 0 && row < p.gathered.h;
        const int64_t at = (image * p.gathered.h + row) * p.gathered.w * p.gathered.all_channels + range.group * call.m_channels + m_channel;
        job.input = inside ? p.gathered.data + at : nullptr;
        job.prologue_y = inside && p.gathered.prologue_y != nullptr ? p.gathered.prologue_y + at : nullptr;
        job.first = u * call.axis_x.planes + px - call.axis_x.lead;
        job.out = a + i * call.a_image + plane * call.a_plane + r * call.columns;
        run.pack_positions(job);
      }
    }
    const int64_t blocks = range.n_last - range.n_first, positions = call.steps(lines, length) * kMatrixRows;
    for (int64_t r = 0; r < lines; ++r) {
      Bf16Pair* line = b + i * call.b_image + r * call.columns * kMatrixLanes;
      p.pack_line(p.dense, image, second, t + r, u, 1, length, range.group * call.n_channels + n_channel, n_count, kMatrixLanes, line,
                  kMatrixLanes, call.b_block);
      const int64_t end = r + 1 < lines ? call.columns : positions - r * call.columns;
      for (int64_t block = 0; block < blocks; ++block) {
        std::fill(line + block * call.b_block + length * kMatrixLanes, line + block * call.b_block + end * kMatrixLanes, Bf16Pair{0});
      }
    }
  }
  MatrixOuterJob job{};
  job.a_channel = call.a_channel;
  job.a_image = call.a_image;
  job.b_image = call.b_image;
  job.images = images;
  job.steps = call.steps(lines, length);
  job.depth = static_cast<int>(kMatrixRows);
  for (int64_t n = range.n_first; n < range.n_last; ++n) {
    job.b = b + (n - range.n_first) * call.b_block;
    job.half_lanes = call.n_channels - n * kMatrixLanes <= kMatrixLanes / 2;
    for (const AxisTap& ty : call.axis_y.phases[0].taps) {
      for (const AxisTap& tx : call.axis_x.phases[0].taps) {
        const int64_t tap = ty.kernel * p.g.kernel_w + tx.kernel, plane = ty.plane * call.axis_x.planes + tx.plane;
        const int64_t place = plane * call.a_plane + ty.offset * call.columns + tx.offset;
        for (int64_t m = range.m_first; m < range.m_last; ++m) {
          job.a = a + (m - range.m_first) * kBlockChannels * call.a_channel + place;
          job.half_rows = call.m_channels - m * kBlockChannels <= kMatrixRows;
          job.sums = sums + (((n - range.n_first) * p.taps + tap) * call.m_step + (m - range.m_first)) * call.block_sums;
          run.outer(job);
        }
      }
    }
  }
}

}  // namespace

void matrix(const Problem<Bf16, Bf16Pair>& p, Bf16* grad_weight) {
  const Call call(p);
  const int64_t ranges = call.ranges(), tasks = ranges * call.splits;
  float* const partial = static_cast<float*>(scratch(kPartialSums, tasks * call.range_sums * sizeof(float)));
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
    Bf16Pair* a = static_cast<Bf16Pair*>(scratch(kTileA, call.m_step * kBlockChannels * call.a_channel * sizeof(Bf16Pair)));
    Bf16Pair* b = static_cast<Bf16Pair*>(scratch(kTileB, call.n_step * call.b_block * sizeof(Bf16Pair)));
    const int64_t end = call.members * (split + 1) / call.splits;
    for (int64_t member = call.members * split / call.splits; member < end; member += call.tile.images) {
      for (int64_t t = 0; t < p.dense.h; t += call.tile.t) {
        for (int64_t u = 0; u < p.dense.w; u += call.tile.u) {
          add_tile(call, range, member, std::min(call.tile.images, end - member), t, u, a, b, sums);
        }
      }
    }
  });

  parallel_tasks(p.g.groups * call.n_blocks * call.m_blocks, p.threads, [&](int64_t task) {
    const int64_t m = task % call.m_blocks, n = task / call.m_blocks % call.n_blocks, group = task / call.m_blocks / call.n_blocks;
    const int64_t range = (group * call.m_ranges + m / call.m_step) * call.n_ranges + n / call.n_step;
    const int64_t n_valid = std::min(kMatrixLanes, call.n_channels - n * kMatrixLanes);
    const int64_t m_valid = std::min(kBlockChannels, call.m_channels - m * kBlockChannels);
    const float* block = partial + range * call.range_sums + (n % call.n_step * p.taps * call.m_step + m % call.m_step) * call.block_sums;
    for (int64_t j = 0; j < n_valid; ++j) {
      Bf16* out = grad_weight + (group * call.n_channels + n * kMatrixLanes + j) * call.m_channels * p.taps +
                  m * kBlockChannels * p.channel_step;
      for (int64_t i = 0; i < m_valid; ++i) {
        for (int64_t tap = 0; tap < p.taps; ++tap) {
          const float* sums = block + tap * call.m_step * call.block_sums + i * kMatrixLanes + j;
          float sum = sums[0];
          for (int64_t split = 1; split < call.splits; ++split) sum += sums[split * ranges * call.range_sums];
          out[i * p.channel_step + tap * p.tap_step] = narrow<Bf16>(sum);
        }
      }
    }
  });
}

}  // namespace weight_grad
}  // namespace gan_fast
