// Fetching what is read next while this is computed. Packing a tile waits for the memory, products whose operands are new to the near cache
// wait for the far one, and in between both are idle: so the steps of the register blocks ask for lines (Fetch).
#pragma once

#include <algorithm>
#include <cstdint>

#include "fetch.h"

namespace gan_fast {

constexpr int64_t kFetchLine = 64;

// So many bytes within so many steps, or as much of them as a line a step is.
inline Fetch fetch_within(const void* from, int64_t bytes, int64_t steps) {
  if (bytes <= 0 || steps <= 0) return {};
  return {static_cast<const char*>(from), std::min(kFetchLine, bytes / steps + 1)};
}

// The steps of a call's even register blocks, and of its odd ones.
struct BlockSteps {
  int64_t even, odd;

  BlockSteps(int64_t blocks, int64_t steps) : even((blocks + 1) / 2 * steps), odd(blocks / 2 * steps) {}
};

// Memory of up to four operands, handed out in shares.
class Ahead {
 public:
  // `steps`: of all kernel calls that will take shares, about.
  explicit Ahead(int64_t steps) : steps_(std::max<int64_t>(steps, 1)) {}

  void add(const void* from, int64_t bytes) {
    if (from == nullptr || bytes <= 0 || count_ == kMost) return;
    ranges_[count_++] = {static_cast<const char*>(from), bytes};
    bytes_ += bytes;
  }

  // A kernel call's share: at a pace that is done before the last steps are, at most a line a step.
  Fetch take(int64_t steps) {
    while (current_ < count_ && ranges_[current_].bytes <= 0) ++current_;
    if (current_ == count_ || steps <= 0) return {};
    Range& range = ranges_[current_];
    const int64_t pace = std::min<int64_t>(kFetchLine, 10 * bytes_ / (9 * steps_) + 1);
    const Fetch share{range.from, std::min(pace, range.bytes / steps + 1)};
    range.from += share.step * steps;
    range.bytes -= share.step * steps;
    return share;
  }

  void take_both(const BlockSteps& steps, Fetch (&shares)[2]) {
    shares[0] = take(steps.even);
    shares[1] = take(steps.odd);
  }

 private:
  static constexpr int kMost = 4;
  struct Range {
    const char* from;
    int64_t bytes;
  };
  Range ranges_[kMost];
  int count_ = 0, current_ = 0;
  int64_t bytes_ = 0, steps_;
};

}  // namespace gan_fast
