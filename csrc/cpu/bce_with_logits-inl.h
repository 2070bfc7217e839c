// Kernel text of bce_with_logits, compiled once per level. Ends of rows go through the vector loop, padded: see bias_act-inl.h.
#include "cpu/bce_with_logits.h"
#include "cpu/vec.h"
#include "cpu/vec_math.h"

namespace gan_fast {
namespace GF_LEVEL {

extern const BceTable bce_table;

namespace {

template <class T>
struct BcePointers {
  const T *x, *target, *weight, *pos_weight;  // null where the constant 1, or target_value, stands for them
  T target_value;
  T grad_scale;
  T* loss;
  T* grad;  // or null
};

template <class T>
__attribute__((noinline)) void bce_vectors(const BcePointers<T>& a, int64_t vectors) {
  constexpr int lanes = VecOf<T>::lanes;
  const Vec<T> one = splat(T(1));
  for (int64_t i = 0; i < vectors; ++i) {
    const int64_t at = i * lanes;
    const Vec<T> x = load(a.x + at);
    const Vec<T> t = a.target != nullptr ? load(a.target + at) : splat(a.target_value);
    const Vec<T> w = a.weight != nullptr ? load(a.weight + at) : one;
    const Vec<T> p = a.pos_weight != nullptr ? load(a.pos_weight + at) : one;

    const Vec<T> e = vexp_nonpositive<Vec<T>>(-vabs(x));
    const Vec<T> linear = x < T(0) ? -x * t * p : x * (one - t);
    const Vec<T> loss = linear + ((p - one) * t + one) * vlog1p_unit(e);
    store(a.loss + at, loss * w);
    if (a.grad != nullptr) {
      const Vec<T> larger = one / (one + e);  // s(|x|)
      const Vec<T> smaller = e * larger;      // s(-|x|)
      const Vec<T> s = x < T(0) ? smaller : larger;
      const Vec<T> s_of_minus = x < T(0) ? larger : smaller;
      store(a.grad + at, ((one - t) * s - p * t * s_of_minus) * (w * a.grad_scale));
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

template <class T>
double bce_piece(const BceWithLogits& args, int64_t begin, int64_t count) {
  constexpr int lanes = VecOf<T>::lanes;
  T losses[kBcePiece];
  BcePointers<T> a;
  a.x = static_cast<const T*>(args.x) + begin;
  a.target = advanced(static_cast<const T*>(args.target), begin);
  a.weight = advanced(static_cast<const T*>(args.weight), begin);
  a.pos_weight = advanced(static_cast<const T*>(args.pos_weight), begin);
  a.target_value = static_cast<T>(args.target_value);
  a.grad_scale = args.reduction == kReduceMean ? static_cast<T>(1.0 / static_cast<double>(args.n)) : T(1);
  a.loss = args.reduction == kReduceNone ? static_cast<T*>(args.loss) + begin : losses;
  a.grad = args.grad != nullptr ? static_cast<T*>(args.grad) + begin : nullptr;
  bce_vectors(a, count / lanes);
  const int64_t rest = count % lanes, done = count - rest;
  if (rest > 0) {
    T room[6][lanes] = {};
    BcePointers<T> end = a;
    end.x = padded(a.x + done, rest, room[0]);
    end.target = padded(advanced(a.target, done), rest, room[1]);
    end.weight = padded(advanced(a.weight, done), rest, room[2]);
    end.pos_weight = padded(advanced(a.pos_weight, done), rest, room[3]);
    end.loss = room[4];
    end.grad = a.grad != nullptr ? room[5] : nullptr;
    bce_vectors(end, 1);
    __builtin_memcpy(a.loss + done, room[4], static_cast<size_t>(rest) * sizeof(T));
    if (a.grad != nullptr) __builtin_memcpy(a.grad + done, room[5], static_cast<size_t>(rest) * sizeof(T));
  }
  return args.reduction == kReduceNone ? 0.0 : sum(a.loss, count);
}

}  // namespace

#if GF_VECTOR_BYTES == 16
const BceTable bce_table = {bce_piece<float>, bce_piece<double>};
#else
const BceTable bce_table = {bce_piece<float>, nullptr};
#endif

}  // namespace GF_LEVEL
}  // namespace gan_fast
