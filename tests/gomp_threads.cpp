// OpenMP's parallel region on plain threads, in place of GNU's runtime: ThreadSanitizer sees these begin and end, where it takes
// every region of a runtime that was not built for it for a race. test_fuzz_kernels.py builds the module with it.
#include <thread>
#include <vector>

namespace {
thread_local bool in_parallel = false;
thread_local int number = 0;
}

extern "C" int omp_in_parallel(void) { return in_parallel ? 1 : 0; }
extern "C" int omp_get_thread_num(void) { return number; }

extern "C" void GOMP_parallel(void (*function)(void*), void* data, unsigned threads, unsigned) {
  std::vector<std::thread> others;
  for (unsigned i = 1; i < threads; ++i) {
    others.emplace_back([=] {
      in_parallel = true;
      number = static_cast<int>(i);
      function(data);
    });
  }
  in_parallel = true;
  function(data);
  in_parallel = false;
  for (std::thread& other : others) other.join();
}
