// Activations and their derivatives by the output, as gan_fast/ops/activation.py has them.
#pragma once

#include <cmath>

#include "common/activation.h"
#include "products.h"

namespace gan_fast::cuda {

// NaN goes through every activation.
GF_DEVICE float activate(float x, int activation, float slope) {
  switch (activation) {
    case kRelu: return x < 0.0f ? 0.0f : x;
    case kLeakyRelu: return x < 0.0f ? x * slope : x;
    case kTanh: return tanhf(x);
    case kSigmoid: return 1.0f / (1.0f + expf(-x));
    default: return x;
  }
}

// grad times the derivative of the activation whose output is y.
GF_DEVICE float through_activation(float grad, float y, int activation, float slope) {
  switch (activation) {
    case kRelu: return y <= 0.0f ? 0.0f : grad;
    case kLeakyRelu: return y > 0.0f ? grad : grad * slope;
    case kTanh: return grad * (1.0f - y * y);
    case kSigmoid: return grad * (1.0f - y) * y;
    default: return grad;
  }
}

}  // namespace gan_fast::cuda
