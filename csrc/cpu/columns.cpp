#include "columns.h"

#include <algorithm>

#include "common/parallel.h"
#include "common/scratch.h"

namespace gan_fast {

ColumnsGeometry columns_geometry(const ConvGeometry& g, bool transposed) {
  return {g.batch,
          transposed ? g.out_channels : g.in_channels,
          transposed ? g.out_h : g.in_h,
          transposed ? g.out_w : g.in_w,
          transposed ? g.in_h : g.out_h,
          transposed ? g.in_w : g.out_w,
          g.kernel_h,
          g.kernel_w,
          g.stride_h,
          g.stride_w,
          g.pad_h,
          g.pad_w,
          g.dilation_h,
          g.dilation_w};
}

template <class T>
void unfold(const Columns<T>& c, int threads) {
  const auto& run = functions_of<T>(columns_table_for<T>());
  const int64_t lines = c.g.batch * c.g.positions_h;
  const int64_t line = c.g.positions_w * c.g.channels * c.g.kernel_h * c.g.kernel_w;
  const int64_t together = std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(line, 1));
  parallel_tasks(ceil_div(lines, together), threads, [&](int64_t task) {
    for (int64_t i = task * together; i < std::min(lines, (task + 1) * together); ++i) {
      run.unfold_line(c, i / c.g.positions_h, i % c.g.positions_h);
    }
  });
}

template <class T>
void fold(const Columns<T>& c, const Epilogue& epilogue, int threads) {
  const auto& run = functions_of<T>(columns_table_for<T>());
  const int64_t blocks = ceil_div(c.g.channels, kFoldChannels);
  const int64_t pixels = c.g.image_h * c.g.image_w, taps = c.g.kernel_h * c.g.kernel_w;
  parallel_tasks(c.g.batch * blocks, threads, [&](int64_t task) {
    FoldJob<T> job{};
    job.sample = task / blocks;
    job.channel = task % blocks * kFoldChannels;
    job.channels = std::min(kFoldChannels, c.g.channels - job.channel);
    job.sums = static_cast<T*>(scratch(kTileA, pixels * kFoldChannels * sizeof(T)));
    job.block = static_cast<T*>(scratch(kTileB, taps * kFoldChannels * sizeof(T)));
    run.fold_channels(c, epilogue, job);
  });
}

template void unfold(const Columns<float>&, int);
template void unfold(const Columns<double>&, int);
template void fold(const Columns<float>&, const Epilogue&, int);
template void fold(const Columns<double>&, const Epilogue&, int);

}  // namespace gan_fast
