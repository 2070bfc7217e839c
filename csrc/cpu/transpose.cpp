#include "transpose.h"

#include <algorithm>

#include "common/geometry.h"
#include "common/parallel.h"

namespace gan_fast {
namespace {

constexpr int64_t kColumns = 64;  // tasks begin at multiples of it: whole lines of an aligned matrix

template <class E>
void transpose_all(const Transpose& args, int threads) {
  const int64_t rows = std::max<int64_t>(args.rows, 1);
  const int64_t band = std::max(kColumns, kElementsPerTask / rows / kColumns * kColumns);
  const int64_t bands = ceil_div(args.columns, band);
  const int64_t together = bands > 1 ? 1 : std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(rows * args.columns, 1));
  parallel_tasks(ceil_div(args.matrices, together) * bands, threads, [&](int64_t task) {
    const int64_t first = task % bands * band, last = std::min(first + band, args.columns);
    const int64_t begin = task / bands * together, end = std::min(begin + together, args.matrices);
    for (int64_t matrix = begin; matrix < end; ++matrix) {
      const int64_t at = matrix * args.rows * args.columns;
      transpose_piece<E>({static_cast<const E*>(args.from) + at + first, args.columns, static_cast<E*>(args.to) + at + first * args.rows,
                          args.rows, args.rows, last - first});
    }
  });
}

}  // namespace

void transpose(const Transpose& args, int threads) {
  switch (args.dtype) {
    case 1:
      return transpose_all<uint64_t>(args, threads);
    case 2:
      return transpose_all<uint16_t>(args, threads);
    default:
      return transpose_all<uint32_t>(args, threads);
  }
}

}  // namespace gan_fast
