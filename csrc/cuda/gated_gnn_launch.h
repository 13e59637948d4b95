// The launches of the gated GNN on CUDA, in plain pointers: gated_gnn.cu stays free of torch's
// headers, which take nvcc a minute each.
#pragma once

#include <cuda_runtime.h>

#include "gated_gnn.h"

namespace ghn::cuda {

struct LaunchPlace {
  int device;
  cudaStream_t stream;
  unsigned blocks;
  int64_t largest_graph;  // nodes; at least so many, if it is not known
};

// Bytes that a block of a device can have.
cudaError_t shared_memory(int device, int* bytes);

// `given` are the weights in the order of the schema.
template <class T>
cudaError_t pack_weights(const Problem& problem, void* const* given, bool backward, T* packed,
                         cudaStream_t stream);

template <class T>
cudaError_t launch_forward(const ForwardArgs<T>& args, const LaunchPlace& place);

template <class T>
cudaError_t launch_backward(const BackwardArgs<T>& args, const LaunchPlace& place);

}  // namespace ghn::cuda
