// The update of one node: GRU cell and the two-layer perceptrons of its messages, element by
// element, forward and backward (arXiv 1810.05749, Eq. 3). The products with weight matrices around
// it start from the bias and add the inputs in ascending order, on every back end.
#pragma once

#include "simd.h"

namespace ghn {

template <class T, int W, class F = Functions<T, W>>
struct NodeUpdate {
  typedef typename Vector<T, W>::type V;

  static GHN_INLINE V relu(V x) { return x > T(0) ? x : V{}; }

  // Gradient of relu, told by its value.
  static GHN_INLINE V relu_backward(V grad, V value) { return value > T(0) ? grad : V{}; }

  struct Gates {
    V r, z, n, out;
  };

  // r = sigmoid(ir + hr), z = sigmoid(iz + hz), n = tanh(in + r * hn), out = (1 - z) n + z h
  static GHN_INLINE Gates gru(V ir, V iz, V in, V hr, V hz, V hn, V h) {
    Gates g;
    g.r = F::sigmoid(ir + hr);
    g.z = F::sigmoid(iz + hz);
    g.n = F::tanh(in + g.r * hn);
    g.out = g.n + g.z * (h - g.n);
    return g;
  }

  struct GateGradients {
    V r, z, n, hn, h;
  };

  // Gradients of the three sums, of hn (what h adds to n) and of h as far as it enters directly.
  static GHN_INLINE GateGradients gru_backward(V grad, V h, V r, V z, V n, V hn) {
    GateGradients d;
    d.h = grad * z;
    d.n = grad * (T(1) - z) * (T(1) - n * n);
    d.z = grad * (h - n) * z * (T(1) - z);
    d.hn = d.n * r;
    d.r = d.n * hn * r * (T(1) - r);
    return d;
  }
};

}  // namespace ghn
