// Attention within graphs on CUDA as an op: the device, and the launches on its stream.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "graph_attention_launch.h"
#include "graph_attention_run.h"

namespace ghn::cuda {
namespace {

struct AttentionLaunches {
  cudaStream_t stream;

  void forward(const AttentionArgs& args, const Graphs& graphs, int64_t tiles) const {
    C10_CUDA_CHECK(launch_attention(args, graphs, tiles, stream));
  }
  void backward(const AttentionArgs& args, const Graphs& graphs, int64_t tiles) const {
    C10_CUDA_CHECK(launch_attention_backward(args, graphs, tiles, stream));
  }
};

// A tensor on a GPU anywhere among the arguments calls these ops.
void check_on_gpu(const at::Tensor& qkv) {
  TORCH_CHECK_VALUE(qkv.is_cuda(), "qkv: got a tensor on ", qkv.device(),
                    ", needs it on a GPU, as another argument is");
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> graph_attention_cuda(const at::Tensor& qkv,
                                                        const at::Tensor& codes,
                                                        at::IntArrayRef offsets,
                                                        const at::Tensor& table) {
  check_on_gpu(qkv);
  const c10::cuda::CUDAGuard guard(qkv.device());
  const AttentionInputs given(qkv, codes, offsets, table);
  return run_attention(AttentionLaunches{c10::cuda::getCurrentCUDAStream()}, given);
}

std::tuple<at::Tensor, at::Tensor> graph_attention_backward_cuda(
    const at::Tensor& grad, const at::Tensor& qkv, const at::Tensor& codes,
    at::IntArrayRef offsets, const at::Tensor& table, const at::Tensor& out,
    const at::Tensor& logsum) {
  check_on_gpu(qkv);
  const c10::cuda::CUDAGuard guard(qkv.device());
  const AttentionInputs given(qkv, codes, offsets, table);
  return run_attention_backward(AttentionLaunches{c10::cuda::getCurrentCUDAStream()}, given, grad,
                                out, logsum);
}

TORCH_LIBRARY_IMPL(ghn_fast, CUDA, m) {
  m.impl("graph_attention_forward", &graph_attention_cuda);
  m.impl("graph_attention_backward", &graph_attention_backward_cuda);
}

}  // namespace ghn::cuda
