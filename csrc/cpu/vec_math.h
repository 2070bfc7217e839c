// Activations and the few transcendental functions they need, on GCC vector types of any length.
//
// Kernel text, compiled once per level: builtins only, nothing of std:: (see vec.h). Every function takes and returns one
// vector V of float or double lanes.
//
// Float lanes: polynomials fitted by a Remez exchange (the weight is the relative error of the result), rounded to float;
// no table, no branch, hence the same bits in every lane and at every position. Largest errors, over all floats:
//   vexp_nonpositive 1.0 ulp, vlog1p_unit 1.4 ulp, vsigmoid 2.5 ulp, vtanh 1.01 ulp     (tests bound them)
// Double lanes: one libm call per lane. They exist to prove the kernel text by gradcheck, not for speed.
//
// Not-a-number goes through everything; -0.0 stays -0.0 in tanh.
#pragma once

#include "common/activation.h"

namespace gan_fast {
namespace GF_LEVEL {

#define GF_MATH static inline __attribute__((always_inline))

// The integer vector of the same shape: what a comparison gives (-1 where true, 0 where false).
template <class V>
using IntOf = decltype(V{} < V{});

template <class V>
inline constexpr bool kIsFloat = sizeof(V{}[0]) == sizeof(float);

template <class V>
inline constexpr int kLanes = static_cast<int>(sizeof(V) / sizeof(V{}[0]));

template <class V>
GF_MATH V vbroadcast(float value) {
  return value - V{};  // not V{} + value, which would turn -0 into 0
}

template <class V>
GF_MATH V vabs(V x) {
  constexpr int shift = 8 * sizeof(x[0]) - 1;
  using I = IntOf<V>;
  return (V)((I)x & ~((I{} + 1) << shift));
}

template <class V>
GF_MATH V vcopysign_nonnegative(V magnitude, V sign) {
  constexpr int shift = 8 * sizeof(sign[0]) - 1;
  using I = IntOf<V>;
  return (V)((I)magnitude | ((I)sign & ((I{} + 1) << shift)));
}

// exp(z) = 2^n * (1 + q): n the nearest integer to z / ln 2 (returned as an integer vector), q = expm1(z - n ln 2).
// Needs |z| < 2^22. Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits of the sum.
template <class V>
GF_MATH V vexp_reduced(V z, IntOf<V>& n) {
  const float magic = 12582912.0f;
  const V shifted = z * 1.44269504f + magic;
  n = (IntOf<V>)shifted - (IntOf<V>)vbroadcast<V>(magic);
  const V whole = shifted - magic;
  // ln 2 in two pieces; the first has nine bits, so whole * piece is exact without FMA too.
  const V r = (z - whole * 0.693359375f) + whole * 2.12194440e-4f;
  V p = r * 1.99155926e-4f + 1.39420072e-3f;
  p = p * r + 8.33327044e-3f;
  p = p * r + 4.16663438e-2f;
  p = p * r + 1.66666672e-1f;
  p = p * r + 0.5f;
  return (p * r) * r + r;
}

template <class V>
GF_MATH V vpow2(IntOf<V> n) {  // -126 <= n <= 127
  return (V)((n + 127) << 23);
}

// exp(z) for z <= 0 (or NaN), down to the smallest denormal.
template <class V>
GF_MATH V vexp_nonpositive(V z) {
  if constexpr (kIsFloat<V>) {
    z = z < -104.0f ? vbroadcast<V>(-104.0f) : z;  // exp(-104) rounds to zero; the comparison keeps NaN
    IntOf<V> n;
    const V q = vexp_reduced(z, n);
    const IntOf<V> half = n >> 1;  // two steps: 2^n itself may be below the smallest normal number
    return ((q + 1.0f) * vpow2<V>(half)) * vpow2<V>(n - half);
  } else {
    for (int i = 0; i < kLanes<V>; ++i) z[i] = __builtin_exp(z[i]);
    return z;
  }
}

// log(1 + e) for 0 <= e <= 1 (or NaN): e - e^2 R(e - 1/2); R is centred, so that its terms shrink instead of cancelling.
template <class V>
GF_MATH V vlog1p_unit(V e) {
  if constexpr (kIsFloat<V>) {
    const V t = e - 0.5f;
    V p = t * -2.07990175e-3f + 4.30790428e-3f;
    p = p * t - 6.11014571e-3f;
    p = p * t + 9.79214348e-3f;
    p = p * t - 1.67553369e-2f;
    p = p * t + 2.89502516e-2f;
    p = p * t - 5.10853790e-2f;
    p = p * t + 9.32302400e-2f;
    p = p * t - 1.79224908e-1f;
    p = p * t + 3.78139555e-1f;
    return e - (e * e) * p;
  } else {
    for (int i = 0; i < kLanes<V>; ++i) e[i] = __builtin_log1p(e[i]);
    return e;
  }
}

// 1 / (1 + exp(-x)), from exp(-|x|): no overflow, and full relative accuracy for large negative x.
template <class V>
GF_MATH V vsigmoid(V x) {
  const V e = vexp_nonpositive<V>(-vabs(x));
  const V numerator = x < 0.0f ? e : vbroadcast<V>(1.0f);
  return numerator / (e + 1.0f);
}

// tanh: an odd polynomial near zero; beyond, 1 - 2 / (exp(2|x|) + 1), where 2^n + 1 is exact and 2^n q is added in one
// rounding. torch's own is within 0.513 ulp, so the usual expm1 / (expm1 + 2), 2.4 ulp, would not do.
template <class V>
GF_MATH V vtanh(V x) {
  if constexpr (kIsFloat<V>) {
    V a = vabs(x);
    a = a > 9.02f ? vbroadcast<V>(9.02f) : a;  // from here on the nearest float is 1; the comparison keeps NaN
    const V u = a * a;
    V p = u * 1.59202245e-4f - 9.67640022e-4f;
    p = p * u + 3.25032650e-3f;
    p = p * u - 8.71583540e-3f;
    p = p * u + 2.18312964e-2f;
    p = p * u - 5.39626814e-2f;
    p = p * u + 1.33332938e-1f;
    p = p * u - 3.33333313e-1f;
    const V near_zero = (p * u) * a + a;
    IntOf<V> n;
    const V q = vexp_reduced<V>(a + a, n);
    const V scale = vpow2<V>(n);
#ifdef __FMA__
    const float border = 0.9f;
    const V large = 1.0f - 2.0f / (q * scale + (scale + 1.0f));
#else
    // Without FMA the polynomial loses a bit from 0.8 on; the division in double makes an earlier border possible.
    const float border = 0.625f;
    V large;
    for (int i = 0; i < kLanes<V>; ++i) {
      const double power = scale[i];
      large[i] = static_cast<float>(1.0 - 2.0 / (q[i] * power + (power + 1.0)));
    }
#endif
    return vcopysign_nonnegative<V>(a < border ? near_zero : large, x);
  } else {
    for (int i = 0; i < kLanes<V>; ++i) x[i] = __builtin_tanh(x[i]);
    return x;
  }
}

// y = act(x). relu and leaky_relu let NaN through, as torch does.
template <int ACT, class V, class S>
GF_MATH V activate(V x, S slope) {
  if constexpr (ACT == kRelu) {
    return x <= 0.0f ? V{} : x;
  } else if constexpr (ACT == kLeakyRelu) {
    return x > 0.0f ? x : x * slope;
  } else if constexpr (ACT == kTanh) {
    return vtanh(x);
  } else if constexpr (ACT == kSigmoid) {
    return vsigmoid(x);
  } else {
    return x;
  }
}

// act'(x), written with y = act(x); leaky_relu needs slope > 0 (else the sign of x is not in y).
template <int ACT, class V, class S>
GF_MATH V act_derivative_from_output(V y, S slope) {
  if constexpr (ACT == kRelu) {
    return y <= 0.0f ? V{} : vbroadcast<V>(1.0f);
  } else if constexpr (ACT == kLeakyRelu) {
    return y > 0.0f ? vbroadcast<V>(1.0f) : slope - V{};
  } else if constexpr (ACT == kTanh) {
    return 1.0f - y * y;
  } else if constexpr (ACT == kSigmoid) {
    return y * (1.0f - y);
  } else {
    return vbroadcast<V>(1.0f);
  }
}

// g * act'(x). Better than multiplying by the derivative: where relu is shut, an infinite g gives 0, as in torch, not NaN.
template <int ACT, class V, class S>
GF_MATH V act_backward(V g, V y, S slope) {
  if constexpr (ACT == kNone) {
    return g;
  } else if constexpr (ACT == kRelu) {
    return y <= 0.0f ? V{} : g;
  } else if constexpr (ACT == kLeakyRelu) {
    return y > 0.0f ? g : g * slope;
  } else {
    return g * act_derivative_from_output<ACT>(y, slope);
  }
}

// The same with the code known only at run time; for loops where the switch is hoisted or does not matter.
template <class V, class S>
GF_MATH V activate(V x, S slope, int act) {
  switch (act) {
    case kRelu: return activate<kRelu>(x, slope);
    case kLeakyRelu: return activate<kLeakyRelu>(x, slope);
    case kTanh: return activate<kTanh>(x, slope);
    case kSigmoid: return activate<kSigmoid>(x, slope);
    default: return x;
  }
}

template <class V, class S>
GF_MATH V act_backward(V g, V y, S slope, int act) {
  switch (act) {
    case kRelu: return act_backward<kRelu>(g, y, slope);
    case kLeakyRelu: return act_backward<kLeakyRelu>(g, y, slope);
    case kTanh: return act_backward<kTanh>(g, y, slope);
    case kSigmoid: return act_backward<kSigmoid>(g, y, slope);
    default: return g;
  }
}

#undef GF_MATH

}  // namespace GF_LEVEL
}  // namespace gan_fast
