// What the kernels multiply: words.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/bf16.h"

namespace gan_fast {

// Two neighbours along the inner dimension of a product, the first in the lower half.
using Bf16Pair = uint32_t;

template <class W>
struct SumOf {
  using type = W;
};
template <>
struct SumOf<Bf16Pair> {
  using type = float;
};

// What words are made of, as it lies in memory.
template <class W>
using Element = std::conditional_t<std::is_same_v<W, Bf16Pair>, Bf16, W>;

// A word is a float, a pair of bf16, or a double where a kernel text is proved in it. Sums of products have the type Sum<W>.
template <class W>
using Sum = typename SumOf<W>::type;

template <class W>
constexpr int64_t kPerWord = 1;
template <>
inline constexpr int64_t kPerWord<Bf16Pair> = 2;

// Of words that hold a part of each element (matrix_kernels.h): from a word to its next part, and what becomes 1 where an element has digits
// that no part holds.
struct Parts {
  int64_t stride;
  int* lost;
};

// The word of two elements; of the first, where a word has no room for two.
template <class W, class S>
W word_of(S first, S second) {
  if constexpr (std::is_same_v<W, Bf16Pair>) {
    return first.bits | static_cast<uint32_t>(second.bits) << 16;
  } else {
    return widen(first);
  }
}

}  // namespace gan_fast
