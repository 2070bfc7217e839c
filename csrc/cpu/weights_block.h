// Some channels' weights in the order of panels, on their way into those of the gather engines.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "common/scratch.h"
#include "gather_conv.h"
#include "gather_plan.h"
#include "transpose.h"
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace gan_fast {

// Whether a call's packed weights are stored around the cache. Many are written once, read much later, and would push out what is in use;
// the products ask for them in time (Fetch). Each core brings its own share of the caches. Measured with two of them, on Zen 3.
template <class W>
bool streams_weights(int64_t weights, int threads) {
  constexpr int64_t kBytesPerThread = 512 << 10;
  return std::is_same_v<W, float> && weights * static_cast<int64_t>(sizeof(W)) >= kBytesPerThread * std::max(threads, 1);
}

// What was stored around the cache is there for other threads.
inline void finish_streams() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// Input channels, taps and output channels ("lanes") of a block; the last `lanes - valid_lanes` do not exist.
struct WeightsBlock {
  int64_t channels, taps, lanes, valid_lanes;
};

// [channel][tap][lane], zeros where there is no such lane; valid until this thread's next use of kTileA. `from`: the block's first weight.
template <class S>
const S* weight_lines(const S* from, const WeightStrides& strides, const WeightsBlock& block) {
  S* const to = static_cast<S*>(scratch(kTileA, block.channels * block.taps * block.lanes * sizeof(S)));
  const int64_t lines = block.channels * block.taps;
  if (block.valid_lanes < block.lanes) {
    for (int64_t line = 0; line < lines; ++line) std::fill(to + line * block.lanes + block.valid_lanes, to + (line + 1) * block.lanes, S{});
  }
  // One of the three strides is 1. If it is not the lanes' own, along its axis lie the rows, one for each lane, of a transposition.
  if (strides.out == 1) {
    for (int64_t c = 0; c < block.channels; ++c) {
      for (int64_t tap = 0; tap < block.taps; ++tap) {
        std::copy_n(from + c * strides.in + tap * strides.tap, block.valid_lanes, to + (c * block.taps + tap) * block.lanes);
      }
    }
  } else if (strides.tap == 1 && strides.in == block.taps) {
    transpose_piece<S>({from, strides.out, to, block.lanes, block.valid_lanes, lines});
  } else if (strides.tap == 1) {
    for (int64_t c = 0; c < block.channels; ++c) {
      transpose_piece<S>({from + c * strides.in, strides.out, to + c * block.taps * block.lanes, block.lanes, block.valid_lanes, block.taps});
    }
  } else {
    for (int64_t tap = 0; tap < block.taps; ++tap) {
      transpose_piece<S>({from + tap * strides.tap, strides.out, to + tap * block.lanes, block.taps * block.lanes, block.valid_lanes,
                          block.channels});
    }
  }
  return to;
}

// Word w of a tap of such lines: one channel, or two, the second of which may not exist.
template <class W, class S>
void pack_word(const S* lines, const WeightsBlock& block, int64_t w, int64_t tap, W* out) {
  const S* const first = lines + (w * kPerWord<W> * block.taps + tap) * block.lanes;
  if (kPerWord<W> == 1 || w * kPerWord<W> + 1 < block.channels) {
    const S* const second = first + (kPerWord<W> - 1) * block.taps * block.lanes;
    for (int64_t o = 0; o < block.lanes; ++o) out[o] = word_of<W>(first[o], second[o]);
  } else {
    for (int64_t o = 0; o < block.lanes; ++o) out[o] = word_of<W>(first[o], S{});
  }
}

// The same of one channel, around the cache where that is possible.
template <class W, class S>
void stream_word(const S* lines, const WeightsBlock& block, int64_t w, int64_t tap, W* out) {
#if defined(__SSE2__)
  if constexpr (std::is_same_v<W, float> && kPerWord<W> == 1) {
    const S* const line = lines + (w * block.taps + tap) * block.lanes;
    for (int64_t o = 0; o < block.lanes; o += 4) {
      _mm_stream_ps(out + o, _mm_setr_ps(widen(line[o]), widen(line[o + 1]), widen(line[o + 2]), widen(line[o + 3])));
    }
    return;
  }
#endif
  pack_word<W>(lines, block, w, tap, out);
}

// Words of input rows, of such lines.
template <class W, class S>
void pack_row_words(const S* lines, const WeightsBlock& block, const std::vector<RowWord>& words, W* out) {
  for (const RowWord& word : words) {
    const S* const first = lines + word.first * block.lanes;
    if constexpr (kPerWord<W> == 1) {
      for (int64_t o = 0; o < block.lanes; ++o) out[o] = word_of<W>(first[o], S{});
    } else {
      const S* const second = lines + word.second * block.lanes;
      const float of_first = word.half_first ? 0.5f : 1.0f, of_second = word.half_second ? 0.5f : 1.0f;
      for (int64_t o = 0; o < block.lanes; ++o) {
        out[o] = word_of<W>(narrow<S>(of_first * widen(first[o])), narrow<S>(of_second * widen(second[o])));
      }
    }
    out += block.lanes;
  }
}

}  // namespace gan_fast
