// Driver of bce_with_logits: fixed pieces for the threads, then their sums in order.
#include "cpu/bce_with_logits.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "common/parallel.h"
#include "cpu/bf16.h"

namespace gan_fast {

void bce_with_logits(const BceWithLogits& args, int threads) {
  const auto kernel = function_for(args.dtype, bce_table_for_level(), portable::bce_table);
  const int64_t pieces = (args.n + kBcePiece - 1) / kBcePiece;
  std::vector<double> sums(static_cast<std::size_t>(pieces));
  const int useful = pieces < 8 ? 1 : threads;  // below 32 Ki elements starting threads costs more than it saves
  parallel_tasks(pieces, useful, [&](int64_t piece) {
    const int64_t begin = piece * kBcePiece;
    sums[static_cast<std::size_t>(piece)] = kernel(args, begin, std::min(kBcePiece, args.n - begin));
  });
  if (args.reduction == kReduceNone) return;
  double total = 0;
  for (double sum : sums) total += sum;
  if (args.reduction == kReduceMean) {
    total = args.n > 0 ? total / static_cast<double>(args.n) : std::numeric_limits<double>::quiet_NaN();
  }
  if (args.dtype == 1) {
    *static_cast<double*>(args.loss) = total;
  } else if (args.dtype == 2) {
    *static_cast<bf16*>(args.loss) = narrowed<bf16>(static_cast<float>(total));
  } else {
    *static_cast<float*>(args.loss) = static_cast<float>(total);
  }
}

}  // namespace gan_fast
