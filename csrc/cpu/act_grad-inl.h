// Kernel text of act_grad, compiled once per level.
//
// The loop takes whole vectors only; an end is copied into a padded vector and goes through the same function, so that an
// element's bits do not depend on where it lies (and hence not on how the work was split).
#include "common/activation.h"
#include "cpu/act_grad.h"
#include "cpu/vec.h"
#include "cpu/vec_math.h"

namespace gan_fast {
namespace GF_LEVEL {

extern const ActGradTable act_grad_table;

namespace {

template <class T, int ACT>
__attribute__((noinline)) void act_grad_vectors(const T* g, const T* y, T* out, int64_t vectors, T slope) {
  constexpr int lanes = VecOf<T>::lanes;
  for (int64_t i = 0; i < vectors; ++i) {
    store(out + i * lanes, act_backward<ACT>(load(g + i * lanes), load(y + i * lanes), slope));
  }
}

template <class T, int ACT>
void act_grad_range(const ActGrad& a, int64_t begin, int64_t end) {
  constexpr int lanes = VecOf<T>::lanes;
  const T* g = static_cast<const T*>(a.grad_output) + begin;
  const T* y = static_cast<const T*>(a.y) + begin;
  T* out = static_cast<T*>(a.out) + begin;
  const T slope = static_cast<T>(a.slope);
  const int64_t vectors = (end - begin) / lanes, rest = (end - begin) % lanes;
  if (vectors > 0) act_grad_vectors<T, ACT>(g, y, out, vectors, slope);
  if (rest == 0) return;
  T padded_g[lanes] = {}, padded_y[lanes] = {};
  const int64_t done = vectors * lanes;
  __builtin_memcpy(padded_g, g + done, static_cast<size_t>(rest) * sizeof(T));
  __builtin_memcpy(padded_y, y + done, static_cast<size_t>(rest) * sizeof(T));
  act_grad_vectors<T, ACT>(padded_g, padded_y, padded_g, 1, slope);
  __builtin_memcpy(out + done, padded_g, static_cast<size_t>(rest) * sizeof(T));
}

template <class T>
void act_grad_any(const ActGrad& a, int64_t begin, int64_t end) {
  switch (a.activation) {
    case kRelu: return act_grad_range<T, kRelu>(a, begin, end);
    case kLeakyRelu: return act_grad_range<T, kLeakyRelu>(a, begin, end);
    case kTanh: return act_grad_range<T, kTanh>(a, begin, end);
    case kSigmoid: return act_grad_range<T, kSigmoid>(a, begin, end);
    default: return act_grad_range<T, kNone>(a, begin, end);
  }
}

}  // namespace

// Double exists at the portable level only, where vectors have 16 bytes.
#if GF_VECTOR_BYTES == 16
const ActGradTable act_grad_table = {act_grad_any<float>, act_grad_any<double>};
#else
const ActGradTable act_grad_table = {act_grad_any<float>, nullptr};
#endif

}  // namespace GF_LEVEL
}  // namespace gan_fast
