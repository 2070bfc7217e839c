// Some channels' weights in the order of panels, on their way into those of the gather engines.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/scratch.h"
#include "gather_conv.h"
#include "transpose.h"

namespace gan_fast {

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

}  // namespace gan_fast
