// The gated GNN on CUDA as an op: checks and launches.

#include <algorithm>

#include "../common/checks.h"
#include "../common/torch_call.h"
#include "../plan/gated_gnn_plan_check.h"
#include "device.h"
#include "gated_gnn_launch.h"
#include "gated_gnn_run.h"

namespace ghn::cuda {
namespace {

struct CudaLaunches {
  LaunchPlace place;

  template <class T>
  void pack(const Problem& problem, void* const* weights, bool backward, T* packed) const {
    check_cuda(pack_weights<T>(problem, weights, backward, packed, place.stream));
  }
  template <class T>
  void forward(const ForwardArgs<T>& args) const {
    check_cuda(launch_forward<T>(args, place));
  }
  template <class T>
  void backward(const BackwardArgs<T>& args) const {
    check_cuda(launch_backward<T>(args, place));
  }
};

// A tensor on a GPU anywhere among the arguments calls these ops.
void check_on_gpu(const Tensor& x) {
  GHN_CHECK(x.is_cuda(), "x: got a tensor on ", x.device(), ", needs it on a GPU");
}

// With x's device as the current one: the plan checked, and where the kernels run.
CudaLaunches prepare(const GatedGnnArgs& args, const Tensor& x, const Tensor& plan) {
  const cudaStream_t stream = current_stream(x.get_device());
  // While a CUDA graph is captured nothing can be copied to the host, and the kernels' own bounds
  // are what remains.
  const KnownPlan known = known_plan(plan, !is_captured(stream));
  check_plan_nodes(known, args.num_nodes);
  int most = 0;
  check_cuda(shared_memory(x.get_device(), &most));
  const Record& r = args.record;
  const bool fits = args.compute == kFloat ? choose_tile<float>(r, true, most).tile > 0 &&
                                                 choose_tile<float>(r, false, most).tile > 0
                                           : choose_tile<double>(r, true, most).tile > 0 &&
                                                 choose_tile<double>(r, false, most).tile > 0;
  GHN_CHECK(fits, "x: got ", args.channels, " channels and hidden layers of ", args.hidden[0],
            " and ", args.hidden[1], ", needs narrower ones: a node does not fit into the ", most,
            " bytes of shared memory that a block of this GPU can have");
  // Blocks beyond the graphs return at once; so many graphs may there be if it is not known.
  const int64_t graphs = known.checked ? known.num_graphs : args.num_nodes;
  LaunchPlace place;
  place.device = x.get_device();
  place.stream = stream;
  place.blocks = unsigned(std::clamp<int64_t>(graphs, 1, 65535));
  place.largest_graph = known.checked ? known.largest_graph : args.num_nodes;
  return {place};
}

}  // namespace

std::tuple<Tensor, Tensor> gated_gnn_forward_cuda(const Tensor& x, const Tensor& plan,
                                                  TensorList weights, int64_t steps, bool save) {
  const GatedGnnArgs args = gated_gnn_args(x, plan, weights, steps);
  check_on_gpu(x);
  const auto guard = guard_of(x);
  return run_forward(prepare(args, x, plan), args, x, plan, steps, save);
}

std::tuple<Tensor, std::vector<Tensor>> gated_gnn_backward_cuda(const Tensor& grad, const Tensor& x,
                                                                const Tensor& plan,
                                                                TensorList weights,
                                                                const Tensor& saved,
                                                                int64_t steps) {
  const GatedGnnArgs args = gated_gnn_args(x, plan, weights, steps);
  check_backward_args(args, grad, x, saved, steps);
  check_on_gpu(x);
  const auto guard = guard_of(x);
  return run_backward(prepare(args, x, plan), args, grad, x, plan, saved, steps);
}

STABLE_TORCH_LIBRARY_IMPL(ghn_fast, CUDA, m) {
  m.impl("gated_gnn_forward", boxed<&gated_gnn_forward_cuda>);
  m.impl("gated_gnn_backward", boxed<&gated_gnn_backward_cuda>);
}

}  // namespace ghn::cuda
