#include "scratch.h"

#include <cstdlib>
#include <new>

namespace gan_fast {
namespace {

struct Buffers {
  void* data[kScratchSlots] = {};
  std::size_t size[kScratchSlots] = {};
  ~Buffers() {
    for (void* p : data) std::free(p);
  }
};

thread_local Buffers buffers;

}  // namespace

void* scratch(ScratchSlot slot, std::size_t bytes) {
  Buffers& b = buffers;
  if (b.size[slot] < bytes) {
    std::free(b.data[slot]);
    b.data[slot] = nullptr;
    b.size[slot] = 0;
    const std::size_t rounded = (bytes + 4095) / 4096 * 4096;
    b.data[slot] = std::aligned_alloc(4096, rounded);
    if (b.data[slot] == nullptr) throw std::bad_alloc();
    b.size[slot] = rounded;
  }
  return b.data[slot];
}

}  // namespace gan_fast
