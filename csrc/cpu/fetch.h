// What one kernel call fetches ahead for its thread (ahead.h): at each of its steps the line at `at`, which then moves on by `step`
// bytes.
#pragma once

#include <cstdint>

namespace gan_fast {

struct Fetch {
  const char* at = nullptr;  // null: nothing
  int64_t step = 0;
};

}  // namespace gan_fast
