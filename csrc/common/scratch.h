// Scratch memory: a thread's own, from call to call, and one call's, shared by its tasks. Never shared between calls.
#pragma once

#include <cstddef>

#include "common/pool.h"

namespace gan_fast {

// Independent buffers, so that a driver's shared weights and a task's private tiles can be alive together.
enum ScratchSlot { kSharedWeights = 0, kTileA, kTileB, kTileC, kPartialSums, kBiasSums, kWholeCall, kScratchSlots };

// At least `bytes` of 64-byte aligned memory, valid until this thread's next call for the same slot. Contents are arbitrary. It grows, and
// is kept for the thread's next call: for tiles, which fit a cache. Throws std::bad_alloc.
void* scratch(ScratchSlot slot, std::size_t bytes);

// At least `bytes` of 64-byte aligned memory, valid as long as this object, of which a thread has one per slot at a time: for what a whole
// call needs, which may be as large as its tensors. Contents are arbitrary. Large ones are blocks of the pool, where they take turns with
// tensors: as each thread's own, the article's step kept 40 MB more. Throws what PoolBlock throws.
class CallScratch {
 public:
  CallScratch(ScratchSlot slot, std::size_t bytes);
  CallScratch(const CallScratch&) = delete;
  CallScratch& operator=(const CallScratch&) = delete;
  ~CallScratch();

  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  PoolBlock block_;
  void* data_;
};

}  // namespace gan_fast
