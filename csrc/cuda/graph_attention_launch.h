// The launches of attention within graphs on CUDA: graph_attention.cu stays free of torch's headers.
#pragma once

#include <cuda_runtime.h>

#include "graph_attention.h"

namespace ghn::cuda {

// Outputs of some graphs of a batch. `tiles` of all of them together, at least 1; heads are not wider
// than kWidestHead.
cudaError_t launch_attention(const AttentionArgs& args, const Graphs& graphs, int64_t tiles,
                             cudaStream_t stream);

cudaError_t launch_attention_backward(const AttentionArgs& args, const Graphs& graphs,
                                      int64_t tiles, cudaStream_t stream);

}  // namespace ghn::cuda
