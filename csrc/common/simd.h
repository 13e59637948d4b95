// A scalar, or several of them side by side, with the functions that a node update needs.
//
// Lanes<T, 1> is a plain T and compiles for the device; wider lanes are the compiler's vector types
// and exist on the host only. Both go through the same formulas, in the same order. Everything is
// inlined, so that the code takes the instruction set of the function that it is inlined into.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "host_device.h"

namespace ghn {

template <class T, int W>
struct Vector {
  typedef T type __attribute__((vector_size(W * sizeof(T))));
};

template <class T>
struct Vector<T, 1> {
  typedef T type;
};

template <class To, class From>
GHN_INLINE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast needs types of one size");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

// exp, tanh and the logistic function, at double precision by the C library, lane by lane.
template <class T, int W>
struct Functions {
  typedef typename Vector<T, W>::type V;

  static GHN_INLINE V exp(V x) {
    T lanes[W];
    memcpy(lanes, &x, sizeof(V));
    for (int i = 0; i < W; ++i) lanes[i] = ::exp(lanes[i]);
    return bit_cast<V>(lanes);
  }

  static GHN_INLINE V tanh(V x) {
    T lanes[W];
    memcpy(lanes, &x, sizeof(V));
    for (int i = 0; i < W; ++i) lanes[i] = ::tanh(lanes[i]);
    return bit_cast<V>(lanes);
  }

  static GHN_INLINE V sigmoid(V x) { return T(1) / (T(1) + exp(-x)); }
};

// At single precision by polynomials (the minimax coefficients of the Cephes library), which keep
// about one unit in the last place and vectorise.
template <int W>
struct Functions<float, W> {
  typedef typename Vector<float, W>::type V;
  typedef typename Vector<int32_t, W>::type I;

  static GHN_INLINE V splat(float value) { return value - V{}; }

  static GHN_INLINE V exp(V x) {
    // Beyond these 2^n leaves the range of normal numbers; NaN passes both comparisons.
    x = x > 88.0f ? splat(88.0f) : x;
    x = x < -87.0f ? splat(-87.0f) : x;
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits of the sum.
    const V shifted = x * 1.44269504088896341f + 12582912.0f;
    const V whole = shifted - 12582912.0f;
    V r = x - whole * 0.693359375f;
    r = r + whole * 2.12194440e-4f;
    V p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    const I exponent = (bit_cast<I>(shifted) - 0x4B400000 + 127) << 23;
    return p * bit_cast<V>(exponent);
  }

  static GHN_INLINE V tanh(V x) {
    const V size = x < 0.0f ? -x : x;
    const V large = 1.0f - 2.0f / (exp(size + size) + 1.0f);
    const V small = tanh_near_zero(x);
    return size < kNearZero ? small : (x < 0.0f ? -large : large);
  }

  static constexpr float kNearZero = 0.625f;

  static GHN_INLINE V tanh_near_zero(V x) {
    const V z = x * x;
    V p = z * -5.70498872745e-3f + 2.06390887954e-2f;
    p = p * z + -5.37397155531e-2f;
    p = p * z + 1.33314422036e-1f;
    p = p * z + -3.33332819422e-1f;
    return p * z * x + x;
  }

  static GHN_INLINE V sigmoid(V x) { return 1.0f / (1.0f + exp(-x)); }
};

}  // namespace ghn
