// The parallel loop of every driver: OpenMP through the process's one pool (torch's, as it is loaded first).
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace gan_fast {

// True in a child made by fork(): OpenMP's pool does not survive a fork, so kernels run on the calling thread there.
bool in_forked_child();

// Threads to use for `tasks` pieces of work when the caller asked for `requested`.
inline int usable_threads(int requested, int64_t tasks) {
#ifdef _OPENMP
  if (requested <= 1 || tasks <= 1 || omp_in_parallel() || in_forked_child()) return 1;
  return static_cast<int>(requested < tasks ? requested : tasks);
#else
  (void)requested;
  (void)tasks;
  return 1;
#endif
}

// Runs body(task) for task = 0..tasks-1. Tasks are handed out dynamically, so body must not depend on the thread. What body throws
// (std::bad_alloc above all) is thrown here, after the region: an exception that leaves a parallel region ends the process.
template <class Body>
void parallel_tasks(int64_t tasks, int requested, const Body& body) {
  const int threads = usable_threads(requested, tasks);
  if (threads == 1) {
    for (int64_t t = 0; t < tasks; ++t) body(t);
    return;
  }
#ifdef _OPENMP
  std::exception_ptr failure;
  std::atomic<bool> failed{false};
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int64_t t = 0; t < tasks; ++t) {
    if (failed.load(std::memory_order_relaxed)) continue;
    try {
      body(t);
    } catch (...) {
      if (!failed.exchange(true)) failure = std::current_exception();
    }
  }
  if (failure) std::rethrow_exception(failure);
#endif
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
