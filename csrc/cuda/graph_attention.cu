// Attention within graphs on CUDA: a block for each 64 queries of one head, forward; backward one
// for them and one for 64 keys. What a block does is in graph_attention_block.h. Every sum has a
// fixed order, so results are deterministic, and a graph gets the same numbers in every batch.
//
// Floor: 4 d multiplications a pair and head forward and 10 d backward, in single precision on the
// cores for that: tensor cores would be half idle at the widths of GHN-3, 8 to 24. Backward the
// gradient of the table costs one sum in shared memory a pair.
#include "graph_attention_block.h"
#include "graph_attention_launch.h"

namespace ghn::cuda {
namespace {

struct AttentionBlock {
  __device__ int thread() const { return int(threadIdx.x); }
  __device__ int64_t index() const { return blockIdx.x; }
  __device__ int64_t head() const { return blockIdx.y; }
  __device__ void sync() const { __syncthreads(); }
};

__device__ float* shared_floats() {
  extern __shared__ __align__(16) float memory[];
  return memory;
}

template <int D>
__global__ void __launch_bounds__(kAttentionThreads)
    attention_forward_kernel(AttentionArgs args, const __grid_constant__ Graphs graphs) {
  attention_forward<D>(AttentionBlock{}, args, graphs, shared_floats());
}

template <int D>
__global__ void __launch_bounds__(kAttentionThreads)
    attention_queries_kernel(AttentionArgs args, const __grid_constant__ Graphs graphs) {
  attention_queries<D>(AttentionBlock{}, args, graphs, shared_floats());
}

template <int D>
__global__ void __launch_bounds__(kAttentionThreads)
    attention_keys_kernel(AttentionArgs args, const __grid_constant__ Graphs graphs) {
  attention_keys<D>(AttentionBlock{}, args, graphs, shared_floats());
}

template <class Kernel>
cudaError_t launch(Kernel kernel, int64_t floats, const AttentionArgs& args, const Graphs& graphs,
                   int64_t tiles, cudaStream_t stream) {
  const int bytes = int(floats * int64_t(sizeof(float)));
  if (bytes > 48 * 1024) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error != cudaSuccess) return error;
  }
  const dim3 grid{unsigned(tiles), unsigned(args.heads)};
  kernel<<<grid, kAttentionThreads, size_t(bytes), stream>>>(args, graphs);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_attention(const AttentionArgs& args, const Graphs& graphs, int64_t tiles,
                             cudaStream_t stream) {
  return with_width(args.width, [&]<int D>() {
    return launch(attention_forward_kernel<D>, AttentionShared::forward(args.rows, D), args, graphs,
                  tiles, stream);
  });
}

cudaError_t launch_attention_backward(const AttentionArgs& args, const Graphs& graphs,
                                      int64_t tiles, cudaStream_t stream) {
  return with_width(args.width, [&]<int D>() {
    const cudaError_t error = launch(attention_queries_kernel<D>,
                                     AttentionShared::queries(args.rows, D), args, graphs, tiles,
                                     stream);
    if (error != cudaSuccess) return error;
    return launch(attention_keys_kernel<D>, AttentionShared::keys(args.rows, D), args, graphs,
                  tiles, stream);
  });
}

}  // namespace ghn::cuda
