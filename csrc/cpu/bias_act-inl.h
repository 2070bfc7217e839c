// Kernel text of bias_act, compiled once per level.
//
// The loops below take whole vectors only; an end is copied into a padded vector and goes through the same function, so that
// an element's bits do not depend on where it lies (and hence not on how the work was split).
#include "common/activation.h"
#include "cpu/bf16.h"
#include "cpu/bias_act.h"
#include "cpu/vec.h"
#include "cpu/vec_math.h"

namespace gan_fast {
namespace GF_LEVEL {

extern const BiasActTable bias_act_table;

namespace {

#define GF_NOINLINE __attribute__((noinline))

enum BiasForm { kWithout, kOneValue, kRepeated };

// S: what is stored; arithmetic is done in T = Wide<S> (bf16.h).
// `bias`: one value, or channels + lanes values of which the first vector starts at `channel`.
template <class S, int ACT, int FORM, class T = Wide<S>>
GF_NOINLINE void bias_act_vectors(const S* x, const T* bias, int64_t channel, int64_t channels, S* y, int64_t vectors, T slope) {
  constexpr int lanes = VecOf<T>::lanes;
  Vec<T> b = FORM == kOneValue ? splat(*bias) : Vec<T>{};
  const int64_t step = FORM == kRepeated ? lanes % channels : 0;
  for (int64_t i = 0; i < vectors; ++i) {
    Vec<T> v = load_wide(x + i * lanes);
    if constexpr (FORM == kRepeated) {
      b = load(bias + channel);
      channel += step;
      if (channel >= channels) channel -= channels;
    }
    if constexpr (FORM != kWithout) v = v + b;
    store_narrow(y + i * lanes, activate<ACT>(v, slope));
  }
}

template <class S, int ACT, int FORM, class T = Wide<S>>
void bias_act_row(const S* x, const T* bias, int64_t channel, int64_t channels, S* y, int64_t n, T slope) {
  constexpr int lanes = VecOf<T>::lanes;
  const int64_t vectors = n / lanes, rest = n % lanes;
  if (vectors > 0) bias_act_vectors<S, ACT, FORM>(x, bias, channel, channels, y, vectors, slope);
  if (rest == 0) return;
  S padded[lanes] = {};
  const int64_t done = vectors * lanes;
  __builtin_memcpy(padded, x + done, static_cast<size_t>(rest) * sizeof(S));
  if (FORM == kRepeated) channel = (channel + done) % channels;
  bias_act_vectors<S, ACT, FORM>(padded, bias, channel, channels, padded, 1, slope);
  __builtin_memcpy(y + done, padded, static_cast<size_t>(rest) * sizeof(S));
}

template <class S, int ACT, class T = Wide<S>>
void bias_act_range(const BiasAct& a, const T* bias, int64_t begin, int64_t end) {
  const S* x = static_cast<const S*>(a.x);
  S* y = static_cast<S*>(a.y);
  const T slope = static_cast<T>(a.slope);
  if (bias == nullptr) {
    bias_act_row<S, ACT, kWithout>(x + begin, bias, 0, 1, y + begin, end - begin, slope);
  } else if (a.inner == 1) {
    bias_act_row<S, ACT, kRepeated>(x + begin, bias, begin % a.channels, a.channels, y + begin, end - begin, slope);
  } else {
    for (int64_t i = begin; i < end;) {
      const int64_t row = i / a.inner;
      const int64_t row_end = (row + 1) * a.inner;
      const int64_t stop = row_end < end ? row_end : end;
      bias_act_row<S, ACT, kOneValue>(x + i, bias + row % a.channels, 0, 1, y + i, stop - i, slope);
      i = stop;
    }
  }
}

template <class S>
void bias_act_any(const BiasAct& a, const void* bias, int64_t begin, int64_t end) {
  const Wide<S>* b = static_cast<const Wide<S>*>(bias);
  switch (a.activation) {
    case kRelu: return bias_act_range<S, kRelu>(a, b, begin, end);
    case kLeakyRelu: return bias_act_range<S, kLeakyRelu>(a, b, begin, end);
    case kTanh: return bias_act_range<S, kTanh>(a, b, begin, end);
    case kSigmoid: return bias_act_range<S, kSigmoid>(a, b, begin, end);
    default: return bias_act_range<S, kNone>(a, b, begin, end);
  }
}

#undef GF_NOINLINE

}  // namespace

// Double exists at the portable level only, where vectors have 16 bytes.
#if GF_VECTOR_BYTES == 16
const BiasActTable bias_act_table = {bias_act_any<float>, bias_act_any<double>, bias_act_any<bf16>};
#else
const BiasActTable bias_act_table = {bias_act_any<float>, nullptr, bias_act_any<bf16>};
#endif

}  // namespace GF_LEVEL
}  // namespace gan_fast
