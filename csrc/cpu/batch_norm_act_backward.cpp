// Driver of batch_norm_act_backward: sums of the pieces, added up in order, then the second pass over the pieces.
#include "cpu/batch_norm_act_backward.h"

#include "common/parallel.h"
#include "cpu/batch_norm.h"

namespace gan_fast {
namespace {

// grad_input = g * scale + t * slope_of_t + constant: what training adds to g * scale.
template <class T>
struct InputTerms {
  std::vector<T> slope_of_t, constant;
};

template <class T>
InputTerms<T> finish(const BatchNormActBackward& args, const NormPieces& pieces, const NormAffine<T>& affine,
                     const std::vector<double>& sums_g, const std::vector<double>& sums_gt) {
  InputTerms<T> terms{std::vector<T>(affine.scale.size()), std::vector<T>(affine.scale.size())};
  const NormParameters weight{args.weight, args.parameter_dtype};
  const double n = static_cast<double>(args.rows);
  for (int64_t c = 0; c < args.channels; ++c) {
    const std::size_t i = static_cast<std::size_t>(c);
    double g = 0, gt = 0;
    for (int64_t down = 0; down < pieces.down; ++down) {
      g += sums_g[static_cast<std::size_t>(down * args.channels + c)];
      gt += sums_gt[static_cast<std::size_t>(down * args.channels + c)];
    }
    const double inverse = 1.0 / std::sqrt(args.var[c] + args.eps);
    const double rest = args.mean[c] - static_cast<double>(affine.shift[i]);  // t = x - mean + rest
    const double gh = (gt - rest * g) * inverse;
    store_parameter(args.grad_bias, args.parameter_dtype, c, g);
    store_parameter(args.grad_weight, args.parameter_dtype, c, gh);
    if (!args.training) continue;
    const double scale = weight.at(c, 1.0) * inverse;
    const double slope = -scale * inverse * gh / n;
    terms.slope_of_t[i] = static_cast<T>(slope);
    terms.constant[i] = static_cast<T>(-scale * g / n - slope * rest);
  }
  return terms;
}

template <class S>
void run(const BatchNormActBackward& args, int threads) {
  using T = Wide<S>;
  const BatchNormActBackwardFunctions<S>& kernel = functions_of<S>(batch_norm_act_backward_table_for<S>());
  const NormPieces pieces(args.rows, args.channels);
  const NormAffine<T> affine(args.channels, args.mean, args.var, args.eps, NormParameters{args.weight, args.parameter_dtype},
                             NormParameters{args.bias, args.parameter_dtype});
  const auto start = [&](int64_t piece) { return pieces.row(piece) * args.channels + pieces.channel(piece); };
  const auto piece_of = [&](int64_t piece) {
    const int64_t channel = pieces.channel(piece);
    return NormBackwardPiece<S>{pieces.rows_of(piece),
                                args.channels,
                                pieces.channels_of(piece),
                                static_cast<const S*>(args.grad_output) + start(piece),
                                static_cast<const S*>(args.x) + start(piece),
                                affine.shift.data() + channel,
                                affine.scale.data() + channel,
                                affine.offset.data() + channel,
                                args.activation,
                                static_cast<T>(args.slope)};
  };
  std::vector<double> sums_g(static_cast<std::size_t>(pieces.down * args.channels)), sums_gt(sums_g.size());
  parallel_tasks(pieces.count(), threads, [&](int64_t piece) {
    const int64_t at = piece / pieces.across * args.channels + pieces.channel(piece);
    kernel.sums(piece_of(piece), sums_g.data() + at, sums_gt.data() + at);
  });
  const InputTerms<T> terms = finish(args, pieces, affine, sums_g, sums_gt);
  S* grad_input = static_cast<S*>(args.grad_input);
  parallel_tasks(pieces.count(), threads, [&](int64_t task) {
    const int64_t piece = pieces.count() - 1 - task;  // from the end: what was read last is still in the cache
    const int64_t channel = pieces.channel(piece);
    kernel.input(piece_of(piece), terms.slope_of_t.data() + channel, terms.constant.data() + channel,
                 grad_input + start(piece));
  });
}

}  // namespace

void batch_norm_act_backward(const BatchNormActBackward& args, int threads) {
  if (args.rows == 0 || args.channels == 0) return;
  switch (args.dtype) {
    case 1: return run<double>(args, threads);
    case 2: return run<bf16>(args, threads);
    default: return run<float>(args, threads);
  }
}

}  // namespace gan_fast
