#include "common/pool.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#include <unistd.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace gan_fast {
namespace {

constexpr std::size_t kAlign = 64;
constexpr std::size_t kMiB = std::size_t{1} << 20;
#if defined(__linux__)
constexpr std::size_t kMapFrom = kMiB;        // from here on mapped, and cut and joined in whole pages
constexpr std::size_t kPages = 64 * 1024;     // of any system
#endif
constexpr std::size_t kHugeFrom = 2 * kMiB;   // one page
constexpr std::size_t kHugePage = 2 * kMiB;
constexpr std::size_t kLargest = std::size_t{1} << 46;
constexpr std::size_t kDefaultLimit = std::size_t{2} << 30;
constexpr std::size_t kUnknown = std::numeric_limits<std::size_t>::max();

struct Block {
  dlpack::ManagedTensor managed;
  int64_t shape[kPoolMaxRank];
  int64_t strides[kPoolMaxRank];
  void* data;
  std::size_t bytes;
  int size_class;
  bool waiting;
  Block *left, *right;  // what adjoins a mapped block, as both were cut from one
  // While waiting: neighbours in the order of return (over all classes) and among the blocks of the same class.
  Block *older, *newer;
  Block *below, *above;
};

// Class 0..7: multiples of 64 bytes up to 512. Then eight steps per power of two; but mapped blocks share one class.
constexpr int kMapped = 8 * (46 - 8) + 8;
constexpr int kClasses = kMapped + 1;

struct SizeClass {
  int index;
  std::size_t bytes;
};

SizeClass size_class(std::size_t bytes) {
  if (bytes <= 512) {
    const std::size_t lines = bytes == 0 ? 1 : (bytes + kAlign - 1) / kAlign;
    return {static_cast<int>(lines) - 1, lines * kAlign};
  }
#if defined(__linux__)
  if (bytes >= kMapFrom) return {kMapped, (bytes + kPages - 1) / kPages * kPages};
#endif
  const int exponent = 63 - __builtin_clzll(static_cast<unsigned long long>(bytes - 1));  // 2^exponent < bytes
  const std::size_t step = std::size_t{1} << (exponent - 3);
  const std::size_t steps = (bytes + step - 1) / step;  // 9..16
  return {8 * (exponent - 8) + static_cast<int>(steps) - 9, steps * step};
}

void* system_alloc(const SizeClass& wanted) {
  const std::size_t bytes = wanted.bytes;
#if defined(__linux__)
  if (wanted.index == kMapped) {
    const bool huge = bytes >= kHugeFrom;
    const std::size_t extra = huge ? kHugePage : 0;
    void* map = mmap(nullptr, bytes + extra, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED) return nullptr;
    if (!huge) return map;
    char* begin = static_cast<char*>(map);
    char* aligned = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(begin) + kHugePage - 1) / kHugePage * kHugePage);
    if (aligned != begin) munmap(begin, static_cast<std::size_t>(aligned - begin));
    char* end = begin + bytes + extra;
    if (aligned + bytes != end) munmap(aligned + bytes, static_cast<std::size_t>(end - (aligned + bytes)));
    madvise(aligned, bytes, MADV_HUGEPAGE);  // advice only: without huge pages everything works as before
    return aligned;
  }
#endif
  return std::aligned_alloc(kAlign, bytes);
}

void system_free(void* data, const SizeClass& had) {
#if defined(__linux__)
  if (had.index == kMapped) {
    // Out of the middle of a mapping this can fail, for want of room in the system's tables; the pages go back all the same.
    if (munmap(data, had.bytes) != 0) madvise(data, had.bytes, MADV_DONTNEED);
    return;
  }
#endif
  (void)had;
  std::free(data);
}

// Also frees what follows in the `older` chain.
void destroy(Block* block) {
  while (block != nullptr) {
    Block* next = block->older;
    system_free(block->data, {block->size_class, block->bytes});
    delete block;
    block = next;
  }
}

std::size_t limit_from_environment() {
  const char* text = std::getenv("GAN_FAST_POOL_MB");
  if (text == nullptr || *text == '\0') {
    std::size_t limit = kDefaultLimit;
#if defined(_SC_PHYS_PAGES)
    const long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    if (pages > 0 && page > 0) limit = std::min(limit, static_cast<std::size_t>(pages) / 4 * static_cast<std::size_t>(page));
#endif
    return limit;
  }
  char* end = nullptr;
  errno = 0;
  const unsigned long long value = std::strtoull(text, &end, 10);
  if (*text < '0' || *text > '9' || *end != '\0' || errno != 0 || value > kLargest / kMiB) {
    throw std::invalid_argument(std::string("GAN_FAST_POOL_MB='") + text + "': expected a whole number of MiB, 0 to turn reuse off");
  }
  return static_cast<std::size_t>(value) * kMiB;
}

class Pool {
 public:
  static Pool& instance() {
    static Pool* pool = new Pool;  // never destroyed, see pool.h
    return *pool;
  }

  Block* take(std::size_t bytes) {
    if (bytes > kLargest) throw std::bad_alloc();
    const SizeClass wanted = size_class(bytes);
    Block* unwanted = nullptr;
    {
      std::lock_guard<std::mutex> hold(mutex_);
      ensure_limit();
      Block* block = wanted.index == kMapped ? best_mapped(wanted.bytes) : top_[wanted.index];
      if (block != nullptr) {
        unlink(block);
        if (block->bytes > wanted.bytes) cut(block, wanted.bytes);
        ++hits_;
        count_live(block->bytes);
        return block;
      }
      if (wanted.index == kMapped) unwanted = make_room(wanted.bytes);
    }
    destroy(unwanted);  // outside the lock: unmapping is slow
    void* data = system_alloc(wanted);
    if (data == nullptr) {
      empty_cache();  // what waits here may be just what the system lacks
      data = system_alloc(wanted);
      if (data == nullptr) throw std::bad_alloc();
    }
    Block* block = new (std::nothrow) Block{};
    if (block == nullptr) {
      system_free(data, wanted);
      throw std::bad_alloc();
    }
    block->data = data;
    block->bytes = wanted.bytes;
    block->size_class = wanted.index;
    std::lock_guard<std::mutex> hold(mutex_);
    ++misses_;
    count_live(block->bytes);
    return block;
  }

  void give(Block* block) {
    Block* unwanted = nullptr;
    {
      std::lock_guard<std::mutex> hold(mutex_);
      live_bytes_ -= block->bytes;
      --live_blocks_;
      if (block->bytes > limit_) {
        block->older = nullptr;
        part(block);
        unwanted = block;
      } else {
        unwanted = trim(limit_ - block->bytes);
        link(join(block));
      }
    }
    destroy(unwanted);
  }

  void empty_cache() {
    Block* unwanted = nullptr;
    {
      std::lock_guard<std::mutex> hold(mutex_);
      unwanted = trim(0);
      most_live_bytes_ = live_bytes_;
      slack_ = 0;
    }
    destroy(unwanted);
  }

  std::size_t set_limit(std::size_t bytes) {
    Block* unwanted = nullptr;
    std::size_t before = 0;
    {
      std::lock_guard<std::mutex> hold(mutex_);
      ensure_limit();
      before = limit_;
      limit_ = bytes;
      unwanted = trim(limit_);
    }
    destroy(unwanted);
    return before;
  }

  PoolStats stats() {
    std::lock_guard<std::mutex> hold(mutex_);
    ensure_limit();
    return {hits_, misses_, live_bytes_, live_blocks_, cached_bytes_, cached_blocks_, limit_};
  }

  std::atomic<bool> poison{false};

 private:
  Pool() {
#if defined(__unix__) || defined(__APPLE__)
    // fork() copies the lock as it is: hold it meanwhile, so that the child finds consistent lists and an open lock.
    pthread_atfork([] { instance().mutex_.lock(); }, [] { instance().mutex_.unlock(); }, [] { instance().mutex_.unlock(); });
#endif
  }

  void ensure_limit() {
    if (limit_ == kUnknown) limit_ = limit_from_environment();
  }

  void count_live(std::size_t bytes) {
    live_bytes_ += bytes;
    most_live_bytes_ = std::max(most_live_bytes_, live_bytes_);
    ++live_blocks_;
  }

  // Before `bytes` come from the system: takes out of what waits the longest unused, as far as pool.h says.
  Block* make_room(std::size_t bytes) {
    const std::size_t live = live_bytes_ + bytes, most = std::max(live, most_live_bytes_) + slack_, before = cached_bytes_;
    Block* removed = trim(most - live, kMapped);
    slack_ += (before - cached_bytes_) / 8;
    return removed;
  }

  // The smallest that will do, the last returned among equals. A handful of blocks wait here.
  Block* best_mapped(std::size_t bytes) {
    Block* best = nullptr;
    for (Block* block = top_[kMapped]; block != nullptr; block = block->below) {
      if (block->bytes >= bytes && (best == nullptr || block->bytes < best->bytes)) best = block;
    }
    return best;
  }

  // Leaves what is beyond `bytes` of a mapped block waiting.
  void cut(Block* block, std::size_t bytes) {
    Block* rest = new (std::nothrow) Block{};
    if (rest == nullptr) return;
    rest->data = static_cast<char*>(block->data) + bytes;
    rest->bytes = block->bytes - bytes;
    rest->size_class = block->size_class;
    rest->left = block;
    rest->right = block->right;
    if (rest->right != nullptr) rest->right->left = rest;
    block->right = rest;
    block->bytes = bytes;
    link(rest);
  }

  // The block and what waits beside it, as one.
  Block* join(Block* block) {
    if (block->left != nullptr && block->left->waiting) {
      unlink(block->left);
      block = absorb_right(block->left);
    }
    if (block->right != nullptr && block->right->waiting) {
      unlink(block->right);
      absorb_right(block);
    }
    return block;
  }

  static Block* absorb_right(Block* block) {
    Block* gone = block->right;
    block->bytes += gone->bytes;
    block->right = gone->right;
    if (block->right != nullptr) block->right->left = block;
    delete gone;
    return block;
  }

  // Before a block's memory goes back to the system.
  static void part(Block* block) {
    if (block->left != nullptr) block->left->right = nullptr;
    if (block->right != nullptr) block->right->left = nullptr;
    block->left = block->right = nullptr;
  }

  void link(Block* block) {
    block->waiting = true;
    block->older = newest_;
    block->newer = nullptr;
    (newest_ != nullptr ? newest_->newer : oldest_) = block;
    newest_ = block;
    Block*& top = top_[block->size_class];
    block->below = top;
    block->above = nullptr;
    if (top != nullptr) top->above = block;
    top = block;
    cached_bytes_ += block->bytes;
    ++cached_blocks_;
  }

  void unlink(Block* block) {
    block->waiting = false;
    (block->newer != nullptr ? block->newer->older : newest_) = block->older;
    (block->older != nullptr ? block->older->newer : oldest_) = block->newer;
    (block->above != nullptr ? block->above->below : top_[block->size_class]) = block->below;
    if (block->below != nullptr) block->below->above = block->above;
    cached_bytes_ -= block->bytes;
    --cached_blocks_;
  }

  // Takes out the longest unused blocks, of classes from `first_class` on, until at most `allowed` bytes wait or none of them does; returns
  // them chained by `older`.
  Block* trim(std::size_t allowed, int first_class = 0) {
    Block* removed = nullptr;
    for (Block* block = oldest_; block != nullptr && cached_bytes_ > allowed;) {
      Block* const next = block->newer;
      if (block->size_class >= first_class) {
        unlink(block);
        part(block);
        block->older = removed;
        removed = block;
      }
      block = next;
    }
    return removed;
  }

  std::mutex mutex_;
  Block* top_[kClasses] = {};
  Block* oldest_ = nullptr;
  Block* newest_ = nullptr;
  uint64_t hits_ = 0;
  uint64_t misses_ = 0;
  std::size_t live_bytes_ = 0;
  std::size_t most_live_bytes_ = 0;
  std::size_t slack_ = 0;  // over the most that ever lived
  std::size_t live_blocks_ = 0;
  std::size_t cached_bytes_ = 0;
  std::size_t cached_blocks_ = 0;
  std::size_t limit_ = kUnknown;
};

Block* taken(std::size_t bytes) {
  Pool& pool = Pool::instance();
  Block* const block = pool.take(bytes);
  if (pool.poison.load(std::memory_order_relaxed)) std::memset(block->data, 0xFF, block->bytes);
  return block;
}

void return_block(dlpack::ManagedTensor* managed) { Pool::instance().give(static_cast<Block*>(managed->manager)); }

[[noreturn]] void bad(const std::string& name, int64_t value, const char* expected) {
  throw std::invalid_argument(name + "=" + std::to_string(value) + ": expected " + expected);
}

// Elements from the first to the last one that shape and strides reach.
std::size_t extent(const int64_t* shape, const int64_t* strides, int rank, std::size_t item) {
  const unsigned __int128 most = kLargest / item;
  unsigned __int128 last = 0;
  bool empty = false;
  for (int d = 0; d < rank; ++d) {
    const std::string at = "[" + std::to_string(d) + "]";
    if (shape[d] < 0) bad("shape" + at, shape[d], "a size >= 0");
    if (strides[d] < 0) bad("strides" + at, strides[d], "a stride >= 0, in elements");
    if (shape[d] == 0) {
      empty = true;
    } else {
      last += static_cast<unsigned __int128>(shape[d] - 1) * static_cast<unsigned __int128>(strides[d]);
      last = std::min(last, most);  // eight products of two 63-bit numbers would overflow
    }
  }
  if (empty) return 0;
  if (last >= most) throw std::invalid_argument("shape and strides span 2^46 bytes or more: expected a smaller tensor");
  return static_cast<std::size_t>(last) + 1;
}

}  // namespace

dlpack::ManagedTensor* pool_tensor(const int64_t* shape, const int64_t* strides, int rank, int dtype) {
  if (rank < 0 || rank > kPoolMaxRank) bad("rank", rank, "0 to 8 dimensions");
  dlpack::DataType type{dlpack::kCodeFloat, 32, 1};
  if (dtype == kPoolFloat64) {
    type.bits = 64;
  } else if (dtype == kPoolBfloat16) {
    type = {dlpack::kCodeBfloat, 16, 1};
  } else if (dtype != kPoolFloat32) {
    bad("dtype", dtype, "0 (float32), 1 (float64) or 2 (bfloat16)");
  }
  const std::size_t item = type.bits / 8;
  const std::size_t bytes = extent(shape, strides, rank, item) * item;
  Block* block = taken(bytes);
  std::copy(shape, shape + rank, block->shape);
  std::copy(strides, strides + rank, block->strides);
  block->managed.tensor = {block->data, {dlpack::kDeviceCpu, 0}, rank, type, block->shape, block->strides, 0};
  block->managed.manager = block;
  block->managed.deleter = return_block;
  return &block->managed;
}

PoolBlock::PoolBlock(std::size_t bytes) {
  Block* const block = taken(bytes);
  block_ = block;
  data_ = block->data;
}

PoolBlock::~PoolBlock() {
  if (block_ != nullptr) Pool::instance().give(static_cast<Block*>(block_));
}

void pool_empty_cache() { Pool::instance().empty_cache(); }

PoolStats pool_stats() { return Pool::instance().stats(); }

std::size_t pool_set_limit(std::size_t bytes) { return Pool::instance().set_limit(bytes); }

bool pool_set_poison(bool on) { return Pool::instance().poison.exchange(on); }

}  // namespace gan_fast
