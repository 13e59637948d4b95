// The launches of the gated GNN on CUDA, in plain pointers: gated_gnn.cu stays free of torch's
// headers, which take nvcc a minute each.
#pragma once

#include <cuda_runtime.h>

#include "../common/plan.h"

namespace ghn::cuda {

// Sizes of the weights, and where they lie.
struct Shape {
  Record record;
  int64_t num_nodes, channels, hidden[2];
  int64_t plan_size;
  int32_t sweeps;
};

template <class T>
struct WeightPointers {
  const T *first[2], *first_b[2], *second[2], *second_b[2];  // as in torch.nn.Linear
  const T *ih, *hh, *ih_b, *hh_b;
};

template <class T>
struct ForwardArgs {
  Shape shape;
  const T* x;
  const int32_t* plan;
  const T* packed;  // see pack_weights
  T* record;        // of all sweeps, or of two that take turns
  int32_t records;
  T* out;
};

template <class T>
struct BackwardArgs {
  Shape shape;
  const T *grad, *x;
  const int32_t* plan;
  const T* packed;
  const T* record;
  // (sweeps, arrays with a row per node): gates n r z hn, hidden layers, what is sent
  T* factors;
  T *d_state, *d_message;  // (N, C), padded
  T* grad_x;
};

// Elements of the packed weights.
GHN_INLINE int64_t packed_size(const Record& r) {
  return 6 * r.c * r.c + 6 * r.c + 2 * r.hidden * r.c + r.hidden + 2 * r.c;
}

GHN_INLINE int64_t factors_width(const Record& r) {
  return 4 * r.c + r.hidden + r.messages * r.c;
}

template <class T>
cudaError_t pack_weights(const Shape& shape, const WeightPointers<T>& weights, bool backward,
                         T* packed, cudaStream_t stream);

template <class T>
cudaError_t launch_forward(const ForwardArgs<T>& args, int device, cudaStream_t stream);

template <class T>
cudaError_t launch_backward(const BackwardArgs<T>& args, int device, cudaStream_t stream);

}  // namespace ghn::cuda
