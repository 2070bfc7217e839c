#include "transpose.h"

#include <algorithm>

#include "common/geometry.h"
#include "common/parallel.h"

namespace gan_fast {
namespace {

constexpr int64_t kColumns = 64;  // tasks begin at multiples of it: whole lines of an aligned matrix

}  // namespace

void transpose(const Transpose& args, int threads) {
  const TransposeTable& table = transpose_table_for_level();
  const auto kernel = function_for(args.dtype, table, table);  // doubles too: nothing is computed
  const int64_t rows = std::max<int64_t>(args.rows, 1);
  const int64_t band = std::max(kColumns, kElementsPerTask / rows / kColumns * kColumns);
  const int64_t bands = ceil_div(args.columns, band);
  const int64_t together = bands > 1 ? 1 : std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(rows * args.columns, 1));
  parallel_tasks(ceil_div(args.matrices, together) * bands, threads, [&](int64_t task) {
    const int64_t first = task % bands * band, last = std::min(first + band, args.columns);
    const int64_t begin = task / bands * together, end = std::min(begin + together, args.matrices);
    for (int64_t matrix = begin; matrix < end; ++matrix) kernel(args, matrix, first, last);
  });
}

}  // namespace gan_fast
