// Kernel text of bias_act, compiled once per level.
//
// The loops below take whole vectors only; an end is copied into a padded vector and goes through the same function, so that
// an element's bits do not depend on where it lies (and hence not on how the work was split).
#include "common/activation.h"
#include "cpu/bias_act.h"
#include "cpu/vec.h"
#include "cpu/vec_math.h"

namespace gan_fast {
namespace GF_LEVEL {

extern const BiasActTable bias_act_table;

namespace {

#define GF_NOINLINE __attribute__((noinline))

enum BiasForm { kWithout, kOneValue, kRepeated };

// `bias`: one value, or channels + lanes values of which the first vector starts at `channel`.
template <class T, int ACT, int FORM>
GF_NOINLINE void bias_act_vectors(const T* x, const T* bias, int64_t channel, int64_t channels, T* y, int64_t vectors, T slope) {
  constexpr int lanes = VecOf<T>::lanes;
  Vec<T> b = FORM == kOneValue ? splat(*bias) : Vec<T>{};
  const int64_t step = FORM == kRepeated ? lanes % channels : 0;
  for (int64_t i = 0; i < vectors; ++i) {
    Vec<T> v = load(x + i * lanes);
    if constexpr (FORM == kRepeated) {
      b = load(bias + channel);
      channel += step;
      if (channel >= channels) channel -= channels;
    }
    if constexpr (FORM != kWithout) v = v + b;
    store(y + i * lanes, activate<ACT>(v, slope));
  }
}

template <class T, int ACT, int FORM>
void bias_act_row(const T* x, const T* bias, int64_t channel, int64_t channels, T* y, int64_t n, T slope) {
  constexpr int lanes = VecOf<T>::lanes;
  const int64_t vectors = n / lanes, rest = n % lanes;
  if (vectors > 0) bias_act_vectors<T, ACT, FORM>(x, bias, channel, channels, y, vectors, slope);
  if (rest == 0) return;
  T padded[lanes] = {};
  const int64_t done = vectors * lanes;
  __builtin_memcpy(padded, x + done, static_cast<size_t>(rest) * sizeof(T));
  if (FORM == kRepeated) channel = (channel + done) % channels;
  bias_act_vectors<T, ACT, FORM>(padded, bias, channel, channels, padded, 1, slope);
  __builtin_memcpy(y + done, padded, static_cast<size_t>(rest) * sizeof(T));
}

template <class T, int ACT>
void bias_act_range(const BiasAct& a, const T* bias, int64_t begin, int64_t end) {
  const T* x = static_cast<const T*>(a.x);
  T* y = static_cast<T*>(a.y);
  const T slope = static_cast<T>(a.slope);
  if (bias == nullptr) {
    bias_act_row<T, ACT, kWithout>(x + begin, nullptr, 0, 1, y + begin, end - begin, slope);
  } else if (a.inner == 1) {
    bias_act_row<T, ACT, kRepeated>(x + begin, bias, begin % a.channels, a.channels, y + begin, end - begin, slope);
  } else {
    for (int64_t i = begin; i < end;) {
      const int64_t row = i / a.inner;
      const int64_t row_end = (row + 1) * a.inner;
      const int64_t stop = row_end < end ? row_end : end;
      bias_act_row<T, ACT, kOneValue>(x + i, bias + row % a.channels, 0, 1, y + i, stop - i, slope);
      i = stop;
    }
  }
}

template <class T>
void bias_act_any(const BiasAct& a, const void* bias, int64_t begin, int64_t end) {
  const T* b = static_cast<const T*>(bias);
  switch (a.activation) {
    case kRelu: return bias_act_range<T, kRelu>(a, b, begin, end);
    case kLeakyRelu: return bias_act_range<T, kLeakyRelu>(a, b, begin, end);
    case kTanh: return bias_act_range<T, kTanh>(a, b, begin, end);
    case kSigmoid: return bias_act_range<T, kSigmoid>(a, b, begin, end);
    default: return bias_act_range<T, kNone>(a, b, begin, end);
  }
}

#undef GF_NOINLINE

}  // namespace

// Double exists at the portable level only, where vectors have 16 bytes.
#if GF_VECTOR_BYTES == 16
const BiasActTable bias_act_table = {bias_act_any<float>, bias_act_any<double>};
#else
const BiasActTable bias_act_table = {bias_act_any<float>, nullptr};
#endif

}  // namespace GF_LEVEL
}  // namespace gan_fast
