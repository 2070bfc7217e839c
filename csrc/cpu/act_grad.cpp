// Driver of act_grad: pieces for the threads.
#include "cpu/act_grad.h"

#include "common/parallel.h"

namespace gan_fast {

void act_grad(const ActGrad& args, int threads) {
  const auto kernel = function_for(args.dtype, act_grad_table_for_level(), portable::act_grad_table);
  parallel_elements(args.n, threads, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

}  // namespace gan_fast
