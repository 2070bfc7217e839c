// Recycled memory for output tensors, and for what a call of a kernel needs meanwhile.
//
// Why: the pages of a fresh 51 MB tensor cost 12 ms of faults on every step, a recycled block 1.6 ms. A block leaves the
// pool inside a DLPack tensor and comes back when the last tensor (view, saved activation) that uses it dies.
//
//   * Blocks are 64-byte aligned; from 2 MiB on fresh ones start on a 2 MiB boundary and ask for huge pages.
//   * Below 1 MiB, blocks serve their size class: at most 1/8 apart, so a block is at most 12.5 % (or 63 bytes) larger than
//     what was asked for. Larger ones are cut from the smallest that waits, and joined again (Linux): classes of their own
//     would keep a quarter more of the article's step resident.
//   * Blocks that wait for reuse take at most limit bytes together; beyond that, the longest unused go back to the
//     system (what is left of a cut block counts as used then). Default: 2 GiB, but never over a quarter of the
//     machine's memory; GAN_FAST_POOL_MB overrides, 0 turns reuse off, that of
//     the kernels' large scratch memory too.
//   * Memory that was never needed at once is not kept: where no waiting block is large enough for a mapped one, the longest
//     unused go back to the system as far as live and waiting bytes together would exceed the most that ever lived. What
//     a program's sizes cannot be fitted into is found out once: each time, an eighth of what went back is allowed on top.
//   * Any thread may take and return blocks, with or without the GIL. A forked child goes on with its own copy.
//   * The pool is never destroyed: tensors may outlive the module at interpreter shutdown.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "common/dlpack.h"

namespace gan_fast {

constexpr int kPoolMaxRank = 8;

// float32 and float64 carry the kernels' dtype codes.
enum PoolDtype : int { kPoolFloat32 = 0, kPoolFloat64 = 1, kPoolBfloat16 = 2 };

struct PoolStats {
  uint64_t hits;           // blocks handed out again
  uint64_t misses;         // blocks that had to come from the system
  std::size_t live_bytes;  // inside tensors and running kernels
  std::size_t live_blocks;
  std::size_t cached_bytes;  // waiting for reuse; never over limit_bytes
  std::size_t cached_blocks;
  std::size_t limit_bytes;
};

// A block without a tensor around it.
class PoolBlock {
 public:
  PoolBlock() = default;
  explicit PoolBlock(std::size_t bytes);  // throws std::bad_alloc; std::invalid_argument for a bad GAN_FAST_POOL_MB
  PoolBlock(PoolBlock&& other) noexcept { *this = std::move(other); }
  PoolBlock& operator=(PoolBlock&& other) noexcept {
    std::swap(block_, other.block_);
    std::swap(data_, other.data_);
    return *this;
  }
  ~PoolBlock();

  void* data() const { return data_; }  // 64-byte aligned; null if none was asked for

 private:
  void* block_ = nullptr;
  void* data_ = nullptr;
};

// An uninitialised tensor; its deleter returns the block. shape and strides (elements, not negative) have `rank` entries,
// at most kPoolMaxRank. Throws std::invalid_argument (bad arguments, bad GAN_FAST_POOL_MB) or std::bad_alloc.
dlpack::ManagedTensor* pool_tensor(const int64_t* shape, const int64_t* strides, int rank, int dtype);

// Gives all waiting blocks back to the system, and forgets what lived so far.
void pool_empty_cache();

PoolStats pool_stats();

// Changes the bound and trims to it; returns the old one. Throws std::invalid_argument for a bad GAN_FAST_POOL_MB.
std::size_t pool_set_limit(std::size_t bytes);

// Test hook: fill every block with NaN (all bits set) before it is handed out. Returns the old setting.
bool pool_set_poison(bool on);

}  // namespace gan_fast
