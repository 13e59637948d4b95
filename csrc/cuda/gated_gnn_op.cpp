// The gated GNN on CUDA as an op: checks and launches.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>

#include "../plan/gated_gnn_plan_check.h"
#include "gated_gnn_launch.h"
#include "gated_gnn_run.h"

namespace ghn::cuda {
namespace {

struct CudaLaunches {
  LaunchPlace place;

  template <class T>
  void pack(const Problem& problem, void* const* weights, bool backward, T* packed) const {
    C10_CUDA_CHECK(pack_weights<T>(problem, weights, backward, packed, place.stream));
  }
  template <class T>
  void forward(const ForwardArgs<T>& args) const {
    C10_CUDA_CHECK(launch_forward<T>(args, place));
  }
  template <class T>
  void backward(const BackwardArgs<T>& args) const {
    C10_CUDA_CHECK(launch_backward<T>(args, place));
  }
};

// With x's device as the current one: the plan checked, and where the kernels run.
CudaLaunches prepare(const GatedGnnArgs& args, const at::Tensor& x, const at::Tensor& plan) {
  TORCH_CHECK_VALUE(x.is_cuda(), "x: got a tensor on ", x.device(), ", needs it on a GPU");
  // While a CUDA graph is captured nothing can be copied to the host, and the kernels' own bounds
  // are what remains.
  const bool capturing = c10::cuda::currentStreamCaptureStatusMayInitCtx() !=
                         c10::cuda::CaptureStatus::None;
  const KnownPlan known = known_plan(plan, !capturing);
  check_plan_nodes(known, args.num_nodes);
  int most = 0;
  C10_CUDA_CHECK(shared_memory(x.get_device(), &most));
  const Record& r = args.record;
  const bool fits = args.compute == at::kFloat ? choose_tile<float>(r, true, most).tile > 0 &&
                                                     choose_tile<float>(r, false, most).tile > 0
                                               : choose_tile<double>(r, true, most).tile > 0 &&
                                                     choose_tile<double>(r, false, most).tile > 0;
  TORCH_CHECK_VALUE(fits, "x: got ", args.channels, " channels and hidden layers of ",
                    args.hidden[0], " and ", args.hidden[1],
                    ", needs narrower ones: a node does not fit into the ", most,
                    " bytes of shared memory that a block of this GPU can have");
  // Blocks beyond the graphs return at once; so many graphs may there be if it is not known.
  const int64_t graphs = known.checked ? known.num_graphs : args.num_nodes;
  LaunchPlace place;
  place.device = x.get_device();
  place.stream = c10::cuda::getCurrentCUDAStream();
  place.blocks = unsigned(std::clamp<int64_t>(graphs, 1, 65535));
  place.largest_graph = known.checked ? known.largest_graph : args.num_nodes;
  return {place};
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> gated_gnn_forward_cuda(const at::Tensor& x,
                                                          const at::Tensor& plan,
                                                          at::TensorList weights, int64_t steps,
                                                          bool save) {
  const GatedGnnArgs args = gated_gnn_args(x, plan, weights, steps);
  const c10::cuda::OptionalCUDAGuard guard(
      x.is_cuda() ? std::optional<c10::Device>(x.device()) : std::nullopt);
  return run_forward(prepare(args, x, plan), args, x, plan, steps, save);
}

std::tuple<at::Tensor, std::vector<at::Tensor>> gated_gnn_backward_cuda(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& plan, at::TensorList weights,
    const at::Tensor& saved, int64_t steps) {
  const GatedGnnArgs args = gated_gnn_args(x, plan, weights, steps);
  check_backward_args(args, grad, x, saved, steps);
  const c10::cuda::OptionalCUDAGuard guard(
      x.is_cuda() ? std::optional<c10::Device>(x.device()) : std::nullopt);
  return run_backward(prepare(args, x, plan), args, grad, x, plan, saved, steps);
}

TORCH_LIBRARY_IMPL(ghn_fast, CUDA, m) {
  m.impl("gated_gnn_forward", &gated_gnn_forward_cuda);
  m.impl("gated_gnn_backward", &gated_gnn_backward_cuda);
}

}  // namespace ghn::cuda
