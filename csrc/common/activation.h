// Activation codes shared by the bindings, the drivers and the kernels.
#pragma once

namespace gan_fast {

enum Activation : int { kNone = 0, kRelu = 1, kLeakyRelu = 2, kTanh = 3, kSigmoid = 4 };

}  // namespace gan_fast
