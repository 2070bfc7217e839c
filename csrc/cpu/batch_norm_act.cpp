// Driver of batch_norm_act: moments of the pieces, their merger, then the second pass over the pieces.
#include "cpu/batch_norm_act.h"

#include "common/parallel.h"
#include "cpu/batch_norm.h"

namespace gan_fast {
namespace {

// Adds the moments of the pieces below each other, from the top down (Chan, Golub and LeVeque's update).
void merge(const NormPieces& pieces, const std::vector<double>& means, const std::vector<double>& squares, double* mean,
           double* var) {
  const int64_t channels = pieces.channels;
  std::copy_n(means.begin(), channels, mean);
  std::copy_n(squares.begin(), channels, var);
  double count = static_cast<double>(std::min(pieces.height, pieces.rows));
  for (int64_t down = 1; down < pieces.down; ++down) {
    const double more = static_cast<double>(pieces.rows_of(down * pieces.across));
    const double share = more / (count + more), spread = count * share;
    const double* m = means.data() + down * channels;
    const double* s = squares.data() + down * channels;
    for (int64_t c = 0; c < channels; ++c) {
      const double distance = m[c] - mean[c];
      mean[c] += distance * share;
      var[c] += s[c] + distance * distance * spread;
    }
    count += more;
  }
  for (int64_t c = 0; c < channels; ++c) var[c] = std::max(var[c], 0.0) / count;
}

template <class S>
void run(const BatchNormAct& args, int threads) {
  using T = Wide<S>;
  const BatchNormActFunctions<S>& kernel = functions_of<S>(batch_norm_act_table_for<S>());
  const NormPieces pieces(args.rows, args.channels);
  const S* x = static_cast<const S*>(args.x);
  S* y = static_cast<S*>(args.y);
  const auto start = [&](int64_t piece) { return pieces.row(piece) * args.channels + pieces.channel(piece); };
  if (args.training) {
    const std::size_t sums = static_cast<std::size_t>(pieces.down * args.channels);
    std::vector<double> means(sums), squares(sums);
    parallel_tasks(pieces.count(), threads, [&](int64_t piece) {
      const int64_t at = piece / pieces.across * args.channels + pieces.channel(piece);
      kernel.moments(x + start(piece), pieces.rows_of(piece), args.channels, pieces.channels_of(piece), means.data() + at,
                     squares.data() + at);
    });
    merge(pieces, means, squares, args.mean, args.var);
  }
  const NormAffine<T> affine(args.channels, args.mean, args.var, args.eps, NormParameters{args.weight, args.parameter_dtype},
                             NormParameters{args.bias, args.parameter_dtype});
  parallel_tasks(pieces.count(), threads, [&](int64_t task) {
    const int64_t piece = pieces.count() - 1 - task;  // from the end: what was read last is still in the cache
    const int64_t channel = pieces.channel(piece);
    kernel.apply(x + start(piece), pieces.rows_of(piece), args.channels, pieces.channels_of(piece),
                 affine.shift.data() + channel, affine.scale.data() + channel, affine.offset.data() + channel,
                 args.activation, static_cast<T>(args.slope), y + start(piece));
  });
}

}  // namespace

void batch_norm_act(const BatchNormAct& args, int threads) {
  if (args.rows == 0 || args.channels == 0) return;
  switch (args.dtype) {
    case 1: return run<double>(args, threads);
    case 2: return run<bf16>(args, threads);
    default: return run<float>(args, threads);
  }
}

}  // namespace gan_fast
