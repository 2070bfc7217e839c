#include "scratch.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "plan.h"

#if defined(__SANITIZE_ADDRESS__)
#define GAN_FAST_EXACT_SCRATCH
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define GAN_FAST_EXACT_SCRATCH
#endif
#endif

namespace gan_fast {
namespace {

// Larger sizes come from an overflow, and rounding them up would give a small one.
constexpr std::size_t kLargest = std::numeric_limits<std::size_t>::max() / 2;

// A thread's tiles together fill most of its L2. On small pages, scattered in memory, some sets of the cache then have to hold more than
// fits and others less: up to 1.5 times the whole call's time (ConvT 512 -> 256 k4 s2 4x4 on 2 MB of L2). One huge page has none of those.
constexpr std::size_t kPage = 4096, kHugePage = 2 * 1024 * 1024, kHugeFrom = 128 * 1024;

constexpr std::size_t kPoolFrom = kHugePage;  // of a call's scratch: below, its thread keeps it

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
  if (bytes > kLargest) throw std::bad_alloc();
  note_scratch(slot, bytes);
  Buffers& b = buffers;
#ifdef GAN_FAST_EXACT_SCRATCH
  // Under the address sanitizer every call gets fresh memory of the very size it asked for, full of NaN: what reaches past it, uses
  // it after the slot's next call or reads it before writing is seen.
  std::free(b.data[slot]);
  b.data[slot] = nullptr;
  if (posix_memalign(&b.data[slot], 64, bytes) != 0) throw std::bad_alloc();
  return std::memset(b.data[slot], 0xFF, bytes);
#else
  if (b.size[slot] < bytes) {
    std::free(b.data[slot]);
    b.data[slot] = nullptr;
    b.size[slot] = 0;
    // What is left beyond whole huge pages stays on small ones: three slots rounded up kept 5 MB more of each thread resident.
    const bool huge = bytes >= kHugeFrom;
    const std::size_t least = std::max(bytes, huge ? kHugePage : 0), rounded = (least + kPage - 1) / kPage * kPage;
    void* map = nullptr;
    if (posix_memalign(&map, huge ? kHugePage : kPage, rounded) != 0) throw std::bad_alloc();
#ifdef __linux__
    if (huge) madvise(map, rounded / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
    b.data[slot] = map;
    b.size[slot] = rounded;
  }
  return b.data[slot];
#endif
}

#ifdef GAN_FAST_EXACT_SCRATCH

CallScratch::CallScratch(ScratchSlot slot, std::size_t bytes) : data_(nullptr) {
  if (bytes > kLargest) throw std::bad_alloc();
  note_scratch(slot, bytes);
  if (posix_memalign(&data_, 64, bytes) != 0) throw std::bad_alloc();
  std::memset(data_, 0xFF, bytes);
}

CallScratch::~CallScratch() { std::free(data_); }

#else

CallScratch::CallScratch(ScratchSlot slot, std::size_t bytes) : data_(nullptr) {
  if (bytes < kPoolFrom) {
    data_ = scratch(slot, bytes);
    return;
  }
  note_scratch(slot, bytes);
  block_ = PoolBlock(bytes);
  data_ = block_.data();
}

CallScratch::~CallScratch() = default;

#endif

}  // namespace gan_fast
