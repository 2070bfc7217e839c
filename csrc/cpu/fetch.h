// What one kernel call fetches ahead for its thread (ahead.h): at each of its steps the line at `at`, which then moves on by `step`
// bytes.
#pragma once

#include <algorithm>
#include <cstdint>

namespace gan_fast {

constexpr int64_t kFetchLine = 64;

struct Fetch {
  const char* at = nullptr;  // null: nothing
  int64_t step = 0;
};

// So many bytes within so many steps, or as much of them as a line a step is.
inline Fetch fetch_within(const void* from, int64_t bytes, int64_t steps) {
  if (bytes <= 0 || steps <= 0) return {};
  return {static_cast<const char*>(from), std::min(kFetchLine, bytes / steps + 1)};
}

}  // namespace gan_fast
