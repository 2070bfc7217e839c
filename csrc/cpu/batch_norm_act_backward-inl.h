// Kernel text of batch_norm_act_backward, compiled once per level.
#include "common/activation.h"
#include "cpu/batch_norm_act_backward.h"
#include "cpu/batch_norm_rows.h"
#include "cpu/vec_math.h"

namespace gan_fast {
namespace GF_LEVEL {

extern const BatchNormActBackwardTable batch_norm_act_backward_table;

namespace {

// g = grad_output * act'(z)
template <class T, int ACT>
inline __attribute__((always_inline)) Vec<T> through(Vec<T> grad_output, Vec<T> t, Vec<T> scale, Vec<T> offset, T slope) {
  if constexpr (ACT == kNone) {
    return grad_output;
  } else if constexpr (ACT == kRelu || ACT == kLeakyRelu) {
    return act_backward<ACT>(grad_output, t * scale + offset, slope);  // only the sign counts, and z has it too
  } else {
    return act_backward<ACT>(grad_output, activate<ACT>(t * scale + offset, slope), slope);
  }
}

template <class S, int ACT, bool NARROW, class T = Wide<S>>
void sums(const NormBackwardPiece<S>& p, double* sum_g, double* sum_gt) {
  T run_g[kNormSlots] = {}, run_gt[kNormSlots] = {};
  double total_g[kNormSlots] = {}, total_gt[kNormSlots] = {};
  const int64_t slots = norm_slots<T>(p.channels);
  for (int64_t begin = 0; begin < p.rows; begin += kNormRun) {
    const int64_t end = p.rows - begin < kNormRun ? p.rows : begin + kNormRun;
    norm_rows<S, 4>(begin, end, p.channels, [&](int64_t row, auto count) {
      norm_vectors<T>(p.channels, [&](int64_t channel, int64_t slot) {
        const Vec<T> m = load(p.shift + channel), s = load(p.scale + channel), b = load(p.offset + channel);
        Vec<T> sum = load(run_g + slot), sum_t = load(run_gt + slot);
        for (int r = 0; r < decltype(count)::value; ++r) {
          const int64_t at = (row + r) * p.stride + channel;
          const Vec<T> t = norm_load<S, NARROW>(p.x + at, p.channels) - m;
          const Vec<T> g = through<T, ACT>(norm_load<S, NARROW>(p.grad_output + at, p.channels), t, s, b, p.slope);
          sum += g;
          sum_t += g * t;
        }
        store(run_g + slot, sum);
        store(run_gt + slot, sum_t);
      });
    });
    norm_flush(run_g, total_g, slots);
    norm_flush(run_gt, total_gt, slots);
  }
  norm_unslot<T>(total_g, p.channels, sum_g);
  norm_unslot<T>(total_gt, p.channels, sum_gt);
}

template <class S, int ACT, bool NARROW, class T = Wide<S>>
void input(const NormBackwardPiece<S>& p, const T* slope_of_t, const T* constant, S* grad_input) {
  norm_rows<S, 2>(0, p.rows, p.channels, [&](int64_t row, auto count) {
    norm_vectors<T>(p.channels, [&](int64_t channel, int64_t) {
      const Vec<T> m = load(p.shift + channel), s = load(p.scale + channel), b = load(p.offset + channel);
      const Vec<T> k = load(slope_of_t + channel), c = load(constant + channel);
      for (int r = 0; r < decltype(count)::value; ++r) {
        const int64_t at = (row + r) * p.stride + channel;
        const Vec<T> t = norm_load<S, NARROW>(p.x + at, p.channels) - m;
        const Vec<T> g = through<T, ACT>(norm_load<S, NARROW>(p.grad_output + at, p.channels), t, s, b, p.slope);
        norm_store<S, NARROW>(grad_input + at, g * s + (t * k + c), p.channels);
      }
    });
  });
}

template <class S, int ACT>
void sums_width(const NormBackwardPiece<S>& p, double* sum_g, double* sum_gt) {
  const auto kernel = p.channels < VecOf<Wide<S>>::lanes ? sums<S, ACT, true> : sums<S, ACT, false>;
  kernel(p, sum_g, sum_gt);
}

template <class S, int ACT, class T = Wide<S>>
void input_width(const NormBackwardPiece<S>& p, const T* slope_of_t, const T* constant, S* out) {
  const auto kernel = p.channels < VecOf<T>::lanes ? input<S, ACT, true> : input<S, ACT, false>;
  kernel(p, slope_of_t, constant, out);
}

template <class S>
void sums_any(const NormBackwardPiece<S>& p, double* sum_g, double* sum_gt) {
  switch (p.activation) {
    case kRelu: return sums_width<S, kRelu>(p, sum_g, sum_gt);
    case kLeakyRelu: return sums_width<S, kLeakyRelu>(p, sum_g, sum_gt);
    case kTanh: return sums_width<S, kTanh>(p, sum_g, sum_gt);
    case kSigmoid: return sums_width<S, kSigmoid>(p, sum_g, sum_gt);
    default: return sums_width<S, kNone>(p, sum_g, sum_gt);
  }
}

template <class S, class T = Wide<S>>
void input_any(const NormBackwardPiece<S>& p, const T* slope_of_t, const T* constant, S* out) {
  switch (p.activation) {
    case kRelu: return input_width<S, kRelu>(p, slope_of_t, constant, out);
    case kLeakyRelu: return input_width<S, kLeakyRelu>(p, slope_of_t, constant, out);
    case kTanh: return input_width<S, kTanh>(p, slope_of_t, constant, out);
    case kSigmoid: return input_width<S, kSigmoid>(p, slope_of_t, constant, out);
    default: return input_width<S, kNone>(p, slope_of_t, constant, out);
  }
}

}  // namespace

// Double exists at the portable level only, where vectors have 16 bytes.
#if GF_VECTOR_BYTES == 16
const BatchNormActBackwardTable batch_norm_act_backward_table = {
    {sums_any<float>, input_any<float>}, {sums_any<double>, input_any<double>}, {sums_any<bf16>, input_any<bf16>}};
#else
const BatchNormActBackwardTable batch_norm_act_backward_table = {
    {sums_any<float>, input_any<float>}, {nullptr, nullptr}, {sums_any<bf16>, input_any<bf16>}};
#endif

}  // namespace GF_LEVEL
}  // namespace gan_fast
