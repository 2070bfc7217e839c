// How a driver serves one call: the sizes of its parallel loops, the memory that it asks for, and Winograd's form if it takes one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "common/scratch.h"

namespace gan_fast {

struct Plan {
  std::vector<int64_t> loops;  // tasks of each parallel loop, in order
  std::size_t scratch[kScratchSlots] = {};  // most bytes of each slot that the calling thread asked for
  int winograd = 0;                         // outputs of a piece along each axis; 0: directly
};

// Begins to record this thread's calls; what was recorded before goes.
void begin_plan();

// Ends it and returns what was recorded.
Plan end_plan();

// For scratch().
void note_scratch(ScratchSlot slot, std::size_t bytes);

// For the drivers that follow Winograd.
void note_winograd(int outputs);

}  // namespace gan_fast
