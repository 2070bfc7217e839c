// Kernel text of act_grad, compiled once per level.
//
// The loop takes whole vectors only; an end is copied into a padded vector and goes through the same function, so that an
// element's bits do not depend on where it lies (and hence not on how the work was split).
#include "common/activation.h"
#include "cpu/act_grad.h"
#include "cpu/bf16.h"
#include "cpu/vec.h"
#include "cpu/vec_math.h"

namespace gan_fast {
namespace GF_LEVEL {

extern const ActGradTable act_grad_table;

namespace {

// S: what is stored; arithmetic is done in Wide<S> (bf16.h).
template <class S, int ACT>
__attribute__((noinline)) void act_grad_vectors(const S* g, const S* y, S* out, int64_t vectors, Wide<S> slope) {
  constexpr int lanes = VecOf<Wide<S>>::lanes;
  for (int64_t i = 0; i < vectors; ++i) {
    store_narrow(out + i * lanes, act_backward<ACT>(load_wide(g + i * lanes), load_wide(y + i * lanes), slope));
  }
}

template <class S, int ACT>
void act_grad_range(const ActGrad& a, int64_t begin, int64_t end) {
  constexpr int lanes = VecOf<Wide<S>>::lanes;
  const S* g = static_cast<const S*>(a.grad_output) + begin;
  const S* y = static_cast<const S*>(a.y) + begin;
  S* out = static_cast<S*>(a.out) + begin;
  const Wide<S> slope = static_cast<Wide<S>>(a.slope);
  const int64_t vectors = (end - begin) / lanes, rest = (end - begin) % lanes;
  if (vectors > 0) act_grad_vectors<S, ACT>(g, y, out, vectors, slope);
  if (rest == 0) return;
  S padded_g[lanes] = {}, padded_y[lanes] = {};
  const int64_t done = vectors * lanes;
  __builtin_memcpy(padded_g, g + done, static_cast<size_t>(rest) * sizeof(S));
  __builtin_memcpy(padded_y, y + done, static_cast<size_t>(rest) * sizeof(S));
  act_grad_vectors<S, ACT>(padded_g, padded_y, padded_g, 1, slope);
  __builtin_memcpy(out + done, padded_g, static_cast<size_t>(rest) * sizeof(S));
}

template <class S>
void act_grad_any(const ActGrad& a, int64_t begin, int64_t end) {
  switch (a.activation) {
    case kRelu: return act_grad_range<S, kRelu>(a, begin, end);
    case kLeakyRelu: return act_grad_range<S, kLeakyRelu>(a, begin, end);
    case kTanh: return act_grad_range<S, kTanh>(a, begin, end);
    case kSigmoid: return act_grad_range<S, kSigmoid>(a, begin, end);
    default: return act_grad_range<S, kNone>(a, begin, end);
  }
}

}  // namespace

// Double exists at the portable level only, where vectors have 16 bytes.
#if GF_VECTOR_BYTES == 16
const ActGradTable act_grad_table = {act_grad_any<float>, act_grad_any<double>, act_grad_any<bf16>};
#else
const ActGradTable act_grad_table = {act_grad_any<float>, nullptr, act_grad_any<bf16>};
#endif

}  // namespace GF_LEVEL
}  // namespace gan_fast
