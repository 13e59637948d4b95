// Attention within graphs on CUDA as an op: the device, and the launches on its stream.

#include "../common/checks.h"
#include "../common/torch_call.h"
#include "device.h"
#include "graph_attention_launch.h"
#include "graph_attention_run.h"

namespace ghn::cuda {
namespace {

struct AttentionLaunches {
  cudaStream_t stream;

  void forward(const AttentionArgs& args, const Graphs& graphs, int64_t tiles) const {
    check_cuda(launch_attention(args, graphs, tiles, stream));
  }
  void backward(const AttentionArgs& args, const Graphs& graphs, int64_t tiles) const {
    check_cuda(launch_attention_backward(args, graphs, tiles, stream));
  }
};

// A tensor on a GPU anywhere among the arguments calls these ops.
void check_on_gpu(const Tensor& qkv) {
  GHN_CHECK(qkv.is_cuda(), "qkv: got a tensor on ", qkv.device(),
            ", needs it on a GPU, as another argument is");
}

}  // namespace

std::tuple<Tensor, Tensor> graph_attention_cuda(const Tensor& qkv, const Tensor& codes,
                                                IntArrayRef offsets, const Tensor& table) {
  check_on_gpu(qkv);
  const auto guard = guard_of(qkv);
  const AttentionInputs given(qkv, codes, offsets, table);
  return run_attention(AttentionLaunches{current_stream(qkv.get_device())}, given);
}

std::tuple<Tensor, Tensor> graph_attention_backward_cuda(const Tensor& grad, const Tensor& qkv,
                                                         const Tensor& codes, IntArrayRef offsets,
                                                         const Tensor& table, const Tensor& out,
                                                         const Tensor& logsum) {
  check_on_gpu(qkv);
  const auto guard = guard_of(qkv);
  const AttentionInputs given(qkv, codes, offsets, table);
  return run_attention_backward(AttentionLaunches{current_stream(qkv.get_device())}, given, grad,
                                out, logsum);
}

STABLE_TORCH_LIBRARY_IMPL(ghn_fast, CUDA, m) {
  m.impl("graph_attention_forward", boxed<&graph_attention_cuda>);
  m.impl("graph_attention_backward", boxed<&graph_attention_backward_cuda>);
}

}  // namespace ghn::cuda
