// Binary cross entropy of logits with its gradient, for one block of threads; csrc/cpu/bce_with_logits.h has the formulas.
//
// A mean or sum is one launch: every block leaves the sum of its losses in `partial`, and the block that comes last adds those up
// in their order. Which block that is does not matter, so the bits are the same in every run.
#pragma once

#include <cmath>
#include <type_traits>

#include "kernels.h"
#include "products.h"

namespace gan_fast::cuda {

struct BceShared {
  double sum[kThreads];
  bool last;
};

template <Product P, class M>
GF_DEVICE float bce_element(M& m, const BceTensors& b, int64_t i) {
  const auto read = [&](const void* tensor, float otherwise) {
    return tensor == nullptr ? otherwise : m.template widen<P>(m.load(static_cast<const Element<P>*>(tensor) + i));
  };
  const float x = read(b.x, 0.0f), t = read(b.target, b.target_value), p = read(b.pos_weight, 1.0f), w = read(b.weight, 1.0f);
  const float factor = 1.0f + (p - 1.0f) * t;  // of log(1 + exp(-x))
  const float decay = expf(-fabsf(x));
  // Each side of 0 in the form in which nothing cancels.
  const float slope = x < 0.0f ? -p * t : 1.0f - t;
  const float outer = decay / (1.0f + decay);
  const float gradient = w * (slope + (x < 0.0f ? factor : -factor) * outer);
  m.store(static_cast<Element<P>*>(b.grad) + i, m.template narrow<P>(gradient * b.scale));
  return w * (slope * x + factor * log1pf(decay));
}

// The sum of all threads' numbers, in shared.sum[0].
template <class M>
GF_DEVICE void sum_over_block(M& m, BceShared& shared) {
  for (int half = kThreads / 2; half > 0; half /= 2) {
    m.sync();
    m.threads([&](int thread) {
      if (thread < half) shared.sum[thread] += shared.sum[thread + half];
    });
  }
  m.sync();
}

template <Product P, class M>
GF_DEVICE void bce_block(M& m, const BceTensors& b, int block, int blocks, BceShared& shared) {
  m.threads([&](int thread) {
    double sum = 0.0;
    for (int64_t i = static_cast<int64_t>(block) * kThreads + thread; i < b.n; i += static_cast<int64_t>(blocks) * kThreads) {
      const float loss = bce_element<P>(m, b, i);
      if (b.reduction == kReduceNone) {
        m.store(static_cast<Element<P>*>(b.loss) + i, m.template narrow<P>(loss));
      } else {
        sum += loss;
      }
    }
    shared.sum[thread] = sum;
  });
  if (b.reduction == kReduceNone) return;
  sum_over_block(m, shared);
  if (blocks > 1) {
    m.threads([&](int thread) {
      if (thread != 0) return;
      m.store(b.partial + block, shared.sum[0]);
      shared.last = m.arrive_last(b.counter, blocks);
    });
    m.sync();
    if (!shared.last) return;
    m.threads([&](int thread) {
      double sum = 0.0;
      for (int i = thread; i < blocks; i += kThreads) sum += m.load_fresh(b.partial + i);
      shared.sum[thread] = sum;
    });
    sum_over_block(m, shared);
  }
  m.threads([&](int thread) {
    if (thread == 0) {
      m.store(static_cast<Element<P>*>(b.loss), m.template narrow<P>(static_cast<float>(shared.sum[0] * b.scale)));
    }
  });
}

// f(product) with the constant of the kernel that serves a kind of element.
template <class F>
void with_bce_kernel(Product product, F f) {
  switch (product) {
    case kBfloat16: return f(std::integral_constant<Product, kBfloat16>{});
    case kFloat16: return f(std::integral_constant<Product, kFloat16>{});
    default: return f(std::integral_constant<Product, kIeee>{});
  }
}

}  // namespace gan_fast::cuda
