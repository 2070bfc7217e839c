// How a driver serves one call: the sizes of its parallel loops, the memory that it asks for, and Winograd's form or the matrix registers if it
// takes them.
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
  int parts = 0;                            // of an element on matrix registers (cpu/matrix_kernels.h); 0: not there
};

// Begins to record this thread's calls; what was recorded before goes.
void begin_plan();

// Ends it and returns what was recorded.
Plan end_plan();

// For scratch().
void note_scratch(ScratchSlot slot, std::size_t bytes);

// For the drivers that follow Winograd.
void note_winograd(int outputs);

// For those of the matrix registers.
void note_parts(int parts);

}  // namespace gan_fast
