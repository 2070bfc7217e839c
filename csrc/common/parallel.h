// The parallel loop of every driver: OpenMP through the process's one pool (torch's, as it is loaded first).
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>

#if defined(GAN_FAST_GOMP)
// What GCC makes of the pragma below. Clang's own runtime would put a second pool of threads beside torch's, which is GNU's.
extern "C" void GOMP_parallel(void (*function)(void*), void* data, unsigned threads, unsigned flags);
extern "C" int omp_in_parallel(void);
extern "C" int omp_get_thread_num(void);
#define GAN_FAST_THREADS
#elif defined(_OPENMP)
#include <omp.h>
#define GAN_FAST_THREADS
#endif

namespace gan_fast {

// Test hook, for looking at how a driver splits its work: while a plan is being recorded on a thread, that thread's parallel loops
// note what they would do and leave their tasks out, so that outputs are arbitrary. See plan.h.
bool recording_plan();
void note_loop(int64_t tasks);

// True in a child made by fork(): OpenMP's pool does not survive a fork, so kernels run on the calling thread there.
bool in_forked_child();

// Threads to use for `tasks` pieces of work when the caller asked for `requested`.
inline int usable_threads(int requested, int64_t tasks) {
#ifdef GAN_FAST_THREADS
  if (requested <= 1 || tasks <= 1 || omp_in_parallel() || in_forked_child()) return 1;
  return static_cast<int>(requested < tasks ? requested : tasks);
#else
  (void)requested;
  (void)tasks;
  return 1;
#endif
}

// Which tasks are a thread's share.
enum class Shares {
  kNeighbours,   // what a thread wrote in the loop before is then in its own cache in the next one over the same data
  kInterleaved,  // of what all threads read afterwards, in one order: none finds all of it in the other's cache at first
};

// A parallel loop that each of its threads works at. A thread begins with its own share; afterwards it takes what others have left.
template <class Body>
class TaskLoop {
 public:
  TaskLoop(int64_t tasks, int threads, Shares kind, const Body& body)
      : shares_(std::min(threads, kMostShares)), step_(kind == Shares::kInterleaved ? shares_ : 1), body_(body) {
    for (int s = 0; s < shares_; ++s) {
      share_[s].next.store(step_ == 1 ? tasks * s / shares_ : s, std::memory_order_relaxed);
      share_[s].end = step_ == 1 ? tasks * (s + 1) / shares_ : tasks;
    }
  }

  // Takes tasks until none is left. An exception that left the parallel region would end the process: it waits for rethrow().
  void work(int thread) {
    for (int k = 0; k < shares_; ++k) {
      Share& share = share_[(thread + k) % shares_];
      while (!failed_.load(std::memory_order_relaxed)) {
        const int64_t task = share.next.fetch_add(step_, std::memory_order_relaxed);
        if (task >= share.end) break;
        try {
          body_(task);
        } catch (...) {
          if (!failed_.exchange(true)) failure_ = std::current_exception();
        }
      }
    }
  }

  void rethrow() const {
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  static constexpr int kMostShares = 64;  // with more threads than that several begin with one
  struct alignas(64) Share {
    std::atomic<int64_t> next;
    int64_t end;
  };

  Share share_[kMostShares];
  const int shares_;
  const int64_t step_;  // from a task of a share to its next
  const Body& body_;
  std::atomic<bool> failed_{false};
  std::exception_ptr failure_;
};

// Runs body(task) for task = 0..tasks-1, by whichever thread has time: body must not depend on it. The first thing
// that body throws (std::bad_alloc) is thrown here; tasks that have not begun by then are left out.
template <class Body>
void parallel_tasks(int64_t tasks, int requested, Shares shares, const Body& body) {
  if (recording_plan()) {
    note_loop(tasks);
    return;
  }
  const int threads = usable_threads(requested, tasks);
  if (threads == 1) {
    for (int64_t t = 0; t < tasks; ++t) body(t);
    return;
  }
#ifdef GAN_FAST_THREADS
  TaskLoop<Body> loop(tasks, threads, shares, body);
#ifdef GAN_FAST_GOMP
  GOMP_parallel([](void* shared) { static_cast<TaskLoop<Body>*>(shared)->work(omp_get_thread_num()); }, &loop, static_cast<unsigned>(threads), 0);
#else
#pragma omp parallel num_threads(threads)
  loop.work(omp_get_thread_num());
#endif
  loop.rethrow();
#endif
}

template <class Body>
void parallel_tasks(int64_t tasks, int requested, const Body& body) {
  parallel_tasks(tasks, requested, Shares::kNeighbours, body);
}

// 32 Ki elements: well above what starting a thread costs, and few enough bytes to stay in a core's second-level cache.
constexpr int64_t kElementsPerTask = 32768;

// Runs body(begin, end) over pieces of n elements, for operators whose elements do not depend on each other.
template <class Body>
void parallel_elements(int64_t n, int requested, const Body& body) {
  parallel_tasks((n + kElementsPerTask - 1) / kElementsPerTask, requested, [&](int64_t task) {
    body(task * kElementsPerTask, std::min(n, (task + 1) * kElementsPerTask));
  });
}

}  // namespace gan_fast
