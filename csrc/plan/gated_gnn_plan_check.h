// When a packed plan is sound, and which tensors are known to hold one.
//
// Anyone can pass any numbers as a plan. Two checks stand between them and the memory:
//
// - Whether the plan is sound in full (in bounds, every node once, in topological order, both lists
//   of edges alike) is found out when a tensor is first seen, and again when its version counter
//   says that it has been written to. Plans that the library made or moved itself are known from
//   the start, so that a plan on a GPU costs no copy back to the host. Inference tensors have no
//   version counter and are checked in each call.
// - What keeps reads in bounds is checked in each call, by the CPU op before it starts and by the
//   CUDA kernels where they read. It catches what no counter sees: writes past torch, and plans of
//   a call that is captured into a CUDA graph, when nothing can be copied to the host.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "../common/gated_gnn_plan.h"

namespace ghn {

struct KnownPlan {
  bool checked = false;  // the rest is known
  int64_t num_graphs = 0, num_nodes = 0;
  int64_t largest_graph = 0;  // nodes
};

// What is wrong with a plan, empty if nothing; the first of the things above.
std::string plan_problem(const int32_t* data, int64_t size);

// Whether every index stays inside its array; the second. `data` has at least a header.
bool plan_in_bounds(const int32_t* data, int64_t size);

// Note that a tensor holds a sound plan, which begins with this header.
KnownPlan remember_plan(const at::Tensor& packed, const int32_t* header_and_graphs);

// What is known of the plan; raises ValueError if it is not sound or has another number of nodes.
// Unless it `may_copy` from the device, what is not known stays so.
KnownPlan known_plan(const at::Tensor& packed, bool may_copy = true);

// ValueError unless the plan is for so many nodes.
void check_plan_nodes(const KnownPlan& plan, int64_t num_nodes);

}  // namespace ghn
