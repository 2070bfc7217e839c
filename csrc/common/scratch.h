// Scratch memory of one thread: grows, is reused from call to call, and is never shared between threads.
#pragma once

#include <cstddef>

namespace gan_fast {

// Independent buffers, so that a driver's shared weights and a task's private tiles can be alive together.
enum ScratchSlot { kSharedWeights = 0, kTileA, kTileB, kTileC, kPartialSums, kBiasSums, kWholeCall, kScratchSlots };

// At least `bytes` of 64-byte aligned memory, valid until this thread's next call for the same slot. Contents are arbitrary.
// Throws std::bad_alloc.
void* scratch(ScratchSlot slot, std::size_t bytes);

}  // namespace gan_fast
