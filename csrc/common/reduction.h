// How a loss over many elements is put together; torch's own numbers.
#pragma once

namespace gan_fast {

enum Reduction : int { kReduceNone = 0, kReduceMean = 1, kReduceSum = 2 };

}  // namespace gan_fast
