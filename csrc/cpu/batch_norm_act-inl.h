// Kernel text of batch_norm_act, compiled once per level.
#include "common/activation.h"
#include "cpu/batch_norm_act.h"
#include "cpu/batch_norm_rows.h"
#include "cpu/vec_math.h"

namespace gan_fast {
namespace GF_LEVEL {

extern const BatchNormActTable batch_norm_act_table;

namespace {

// Rows whose mean the sums are taken from. Any nearby value would do, but a single row may be an outlier, such as an
// image's corner; of several rows the distance to the mean of all is part of the variance itself.
constexpr int64_t kShiftRows = 16;

// sums += x - shift, squares += (x - shift)^2
template <class S, bool NARROW, int ROWS, class T = Wide<S>>
inline __attribute__((always_inline)) void add_rows(const S* x, int64_t stride, int64_t channels, const T* shift, T* sums,
                                                    T* squares) {
  norm_vectors<T>(channels, [&](int64_t channel, int64_t slot) {
    const Vec<T> m = load(shift + channel);
    Vec<T> sum = load(sums + slot), square = load(squares + slot);
    for (int r = 0; r < ROWS; ++r) {
      const Vec<T> d = norm_load<S, NARROW>(x + r * stride + channel, channels) - m;
      sum += d;
      square += d * d;
    }
    store(sums + slot, sum);
    store(squares + slot, square);
  });
}

template <class S, bool NARROW, class T = Wide<S>>
void moments(const S* x, int64_t rows, int64_t stride, int64_t channels, double* mean, double* squares) {
  T shift[kNormSlots] = {}, run_sums[kNormSlots] = {}, run_squares[kNormSlots] = {};
  double sums[kNormSlots] = {}, sums_of_squares[kNormSlots] = {};
  const int64_t slots = norm_slots<T>(channels);

  const int64_t first = rows < kShiftRows ? rows : kShiftRows;
  for (int64_t r = 0; r < first; ++r) {
    for (int64_t c = 0; c < channels; ++c) shift[c] += widened(x[r * stride + c]);
  }
  for (int64_t c = 0; c < channels; ++c) shift[c] /= static_cast<T>(first);

  for (int64_t begin = 0; begin < rows; begin += kNormRun) {
    const int64_t end = rows - begin < kNormRun ? rows : begin + kNormRun;
    norm_rows<S, 4>(begin, end, channels, [&](int64_t r, auto count) {
      add_rows<S, NARROW, decltype(count)::value>(x + r * stride, stride, channels, shift, run_sums, run_squares);
    });
    norm_flush(run_sums, sums, slots);
    norm_flush(run_squares, sums_of_squares, slots);
  }

  norm_unslot<T>(sums, channels, mean);
  norm_unslot<T>(sums_of_squares, channels, squares);
  const double n = static_cast<double>(rows);
  for (int64_t c = 0; c < channels; ++c) {
    squares[c] -= mean[c] * mean[c] / n;
    mean[c] = static_cast<double>(shift[c]) + mean[c] / n;
  }
}

template <class S, int ACT, bool NARROW, class T = Wide<S>>
void apply(const S* x, int64_t rows, int64_t stride, int64_t channels, const T* shift, const T* scale, const T* offset,
           T slope, S* y) {
  norm_rows<S, 2>(0, rows, channels, [&](int64_t row, auto count) {
    norm_vectors<T>(channels, [&](int64_t channel, int64_t) {
      const Vec<T> m = load(shift + channel), s = load(scale + channel), b = load(offset + channel);
      for (int r = 0; r < decltype(count)::value; ++r) {
        const int64_t at = (row + r) * stride + channel;
        const Vec<T> t = norm_load<S, NARROW>(x + at, channels) - m;
        norm_store<S, NARROW>(y + at, activate<ACT>(t * s + b, slope), channels);
      }
    });
  });
}

template <class S>
void moments_any(const S* x, int64_t rows, int64_t stride, int64_t channels, double* mean, double* squares) {
  const auto kernel = channels < VecOf<Wide<S>>::lanes ? moments<S, true> : moments<S, false>;
  kernel(x, rows, stride, channels, mean, squares);
}

template <class S, int ACT, class T = Wide<S>>
void apply_width(const S* x, int64_t rows, int64_t stride, int64_t channels, const T* shift, const T* scale, const T* offset,
                 T slope, S* y) {
  const auto kernel = channels < VecOf<T>::lanes ? apply<S, ACT, true> : apply<S, ACT, false>;
  kernel(x, rows, stride, channels, shift, scale, offset, slope, y);
}

template <class S, class T = Wide<S>>
void apply_any(const S* x, int64_t rows, int64_t stride, int64_t channels, const T* shift, const T* scale, const T* offset,
               int activation, T slope, S* y) {
  switch (activation) {
    case kRelu: return apply_width<S, kRelu>(x, rows, stride, channels, shift, scale, offset, slope, y);
    case kLeakyRelu: return apply_width<S, kLeakyRelu>(x, rows, stride, channels, shift, scale, offset, slope, y);
    case kTanh: return apply_width<S, kTanh>(x, rows, stride, channels, shift, scale, offset, slope, y);
    case kSigmoid: return apply_width<S, kSigmoid>(x, rows, stride, channels, shift, scale, offset, slope, y);
    default: return apply_width<S, kNone>(x, rows, stride, channels, shift, scale, offset, slope, y);
  }
}

}  // namespace

// Double exists at the portable level only, where vectors have 16 bytes.
#if GF_VECTOR_BYTES == 16
const BatchNormActTable batch_norm_act_table = {
    {moments_any<float>, apply_any<float>}, {moments_any<double>, apply_any<double>}, {moments_any<bf16>, apply_any<bf16>}};
#else
const BatchNormActTable batch_norm_act_table = {
    {moments_any<float>, apply_any<float>}, {nullptr, nullptr}, {moments_any<bf16>, apply_any<bf16>}};
#endif

}  // namespace GF_LEVEL
}  // namespace gan_fast
