// Kernel text of bce_with_logits, compiled once per level. Ends of rows go through the vector loop, padded: see bias_act-inl.h.
#include "cpu/bce_with_logits.h"
#include "cpu/bf16.h"
#include "cpu/vec.h"
#include "cpu/vec_math.h"

namespace gan_fast {
namespace GF_LEVEL {

extern const BceTable bce_table;

namespace {

// S: what is stored; arithmetic is done in Wide<S> (bf16.h). L: of the losses, Wide<S> where they are added up.
template <class S, class L>
struct BcePointers {
  const S *x, *target, *weight, *pos_weight;  // null where the constant 1, or target_value, stands for them
  Wide<S> target_value;
  Wide<S> grad_scale;
  L* loss;
  S* grad;  // or null
};

template <class S, class L>
__attribute__((noinline)) void bce_vectors(const BcePointers<S, L>& a, int64_t vectors) {
  using T = Wide<S>;
  constexpr int lanes = VecOf<T>::lanes;
  const Vec<T> one = splat(T(1));
  for (int64_t i = 0; i < vectors; ++i) {
    const int64_t at = i * lanes;
    const Vec<T> x = load_wide(a.x + at);
    const Vec<T> t = a.target != nullptr ? load_wide(a.target + at) : splat(a.target_value);
    const Vec<T> w = a.weight != nullptr ? load_wide(a.weight + at) : one;
    const Vec<T> p = a.pos_weight != nullptr ? load_wide(a.pos_weight + at) : one;

    const Vec<T> e = vexp_nonpositive<Vec<T>>(-vabs(x));
    const Vec<T> linear = x < T(0) ? -x * t * p : x * (one - t);
    const Vec<T> loss = linear + ((p - one) * t + one) * vlog1p_unit(e);
    store_narrow(a.loss + at, loss * w);
    if (a.grad != nullptr) {
      const Vec<T> larger = one / (one + e);  // s(|x|)
      const Vec<T> smaller = e * larger;      // s(-|x|)
      const Vec<T> s = x < T(0) ? smaller : larger;
      const Vec<T> s_of_minus = x < T(0) ? larger : smaller;
      store_narrow(a.grad + at, ((one - t) * s - p * t * s_of_minus) * (w * a.grad_scale));
    }
  }
}

// Sixteen interleaved sums, added in a fixed order: lets the compiler use vectors without changing the result.
template <class T>
double sum(const T* values, int64_t n) {
  double part[16] = {};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    for (int k = 0; k < 16; ++k) part[k] += static_cast<double>(values[i + k]);
  }
  for (int k = 0; i < n; ++i, ++k) part[k] += static_cast<double>(values[i]);
  double total = 0;
  for (double v : part) total += v;
  return total;
}

template <class T>
inline const T* advanced(const T* p, int64_t by) {
  return p != nullptr ? p + by : nullptr;
}

// The first `rest` elements at p in a full vector; null stays null.
template <class T>
inline const T* padded(const T* p, int64_t rest, T* room) {
  if (p == nullptr) return nullptr;
  __builtin_memcpy(room, p, static_cast<size_t>(rest) * sizeof(T));
  return room;
}

// The piece with its losses at `loss`.
template <class S, class L>
void bce_elements(const BceWithLogits& args, int64_t begin, int64_t count, L* loss) {
  using T = Wide<S>;
  constexpr int lanes = VecOf<T>::lanes;
  BcePointers<S, L> a;
  a.x = static_cast<const S*>(args.x) + begin;
  a.target = advanced(static_cast<const S*>(args.target), begin);
  a.weight = advanced(static_cast<const S*>(args.weight), begin);
  a.pos_weight = advanced(static_cast<const S*>(args.pos_weight), begin);
  a.target_value = static_cast<T>(args.target_value);
  a.grad_scale = args.reduction == kReduceMean ? static_cast<T>(1.0 / static_cast<double>(args.n)) : T(1);
  a.loss = loss;
  a.grad = args.grad != nullptr ? static_cast<S*>(args.grad) + begin : nullptr;
  bce_vectors(a, count / lanes);
  const int64_t rest = count % lanes, done = count - rest;
  if (rest == 0) return;
  S room[5][lanes] = {};
  L room_for_loss[lanes];
  BcePointers<S, L> end = a;
  end.x = padded(a.x + done, rest, room[0]);
  end.target = padded(advanced(a.target, done), rest, room[1]);
  end.weight = padded(advanced(a.weight, done), rest, room[2]);
  end.pos_weight = padded(advanced(a.pos_weight, done), rest, room[3]);
  end.loss = room_for_loss;
  end.grad = a.grad != nullptr ? room[4] : nullptr;
  bce_vectors(end, 1);
  __builtin_memcpy(a.loss + done, room_for_loss, static_cast<size_t>(rest) * sizeof(L));
  if (a.grad != nullptr) __builtin_memcpy(a.grad + done, room[4], static_cast<size_t>(rest) * sizeof(S));
}

template <class S>
double bce_piece(const BceWithLogits& args, int64_t begin, int64_t count) {
  if (args.reduction == kReduceNone) {
    bce_elements<S>(args, begin, count, static_cast<S*>(args.loss) + begin);
    return 0.0;
  }
  Wide<S> losses[kBcePiece];
  bce_elements<S>(args, begin, count, losses);
  return sum(losses, count);
}

}  // namespace

#if GF_VECTOR_BYTES == 16
const BceTable bce_table = {bce_piece<float>, bce_piece<double>, bce_piece<bf16>};
#else
const BceTable bce_table = {bce_piece<float>, nullptr, bce_piece<bf16>};
#endif

}  // namespace GF_LEVEL
}  // namespace gan_fast
