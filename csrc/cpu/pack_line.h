// Kernel text: copies of the input's own rows (PackLine in gather_conv.h).
#pragma once

#include <type_traits>

#include "common/activation.h"
#include "gather_conv.h"
#include "vec.h"
#include "vec_math.h"

namespace gan_fast {
namespace GF_LEVEL {

template <int ACT, class S, class T>
void pack_line_impl(const PackLine<S, T>& line) {
  if constexpr (ACT == kNone && std::is_same_v<S, T>) {
    __builtin_memcpy(line.out, line.input, line.n * sizeof(S));
    return;
  }
  using V = Arithmetic<S>;
  constexpr int lanes = VecOf<V>::lanes;
  int64_t i = 0;
  for (; i + lanes <= line.n; i += lanes) {
    Vec<V> value = read<S>(line.input + i);
    if constexpr (ACT != kNone) value = act_backward<ACT>(value, read<S>(line.prologue_y + i), line.prologue_slope);
    write<T>(line.out + i, value);
  }
  const int64_t left = line.n - i;
  if (left == 0) return;
  Vec<V> value = read_first<S>(line.input + i, left);
  if constexpr (ACT != kNone) value = act_backward<ACT>(value, read_first<S>(line.prologue_y + i, left), line.prologue_slope);
  write_first<T>(line.out + i, value, left);
}

template <class S, class T>
void pack_line(const PackLine<S, T>& line) {
  switch (line.prologue_y == nullptr ? kNone : line.prologue_activation) {
    case kRelu:
      return pack_line_impl<kRelu>(line);
    case kLeakyRelu:
      return pack_line_impl<kLeakyRelu>(line);
    case kTanh:
      return pack_line_impl<kTanh>(line);
    case kSigmoid:
      return pack_line_impl<kSigmoid>(line);
    default:
      return pack_line_impl<kNone>(line);
  }
}

}  // namespace GF_LEVEL
}  // namespace gan_fast
