// When a packed plan is sound, and how that is known without looking again.
//
// Anyone can pass any numbers as a plan. Before it is used, a plan has been checked in full: in
// bounds, every node once, in topological order, both lists of edges alike.
//
// - On the CPU what was found sound, or made by the library, is known by a hash of its contents,
//   taken in each call, whatever tensor holds them and whoever wrote there (content_hash.h).
// - On a GPU it is known by the tensor and its version counter: what gated_gnn_plan_to moved there
//   is known from the start, anything else costs a copy to the host when it is first seen and after
//   every write that torch knows of. The latest 64 MiB of them are known, and held. Inference
//   tensors have no version counter and are checked in each call. The kernels keep their own reads
//   in bounds besides, against writes past torch, and in a call that is captured into a CUDA graph,
//   when nothing can be copied to the host.
#pragma once

#include <string>

#include "../common/gated_gnn_plan.h"
#include "../common/tensor.h"

namespace ghn {

struct KnownPlan {
  bool checked = false;  // the rest is known
  int64_t num_graphs = 0, num_nodes = 0;
  int64_t largest_graph = 0;  // nodes
};

// What is wrong with a plan, empty if nothing.
std::string plan_problem(const int32_t* data, int64_t size);

// Note that a plan on the CPU is sound by the way it was made.
void remember_made_plan(const Tensor& packed);

// Note that a tensor on a device holds a sound plan, which begins with this header.
void remember_moved_plan(const Tensor& packed, const int32_t* header_and_graphs);

// ValueError if a plan on the CPU is not sound at this moment.
void check_plan(const Tensor& packed);

// What is known of the plan; raises ValueError if it is not sound at this moment. Unless it
// `may_copy` from the device, what is not known stays so.
KnownPlan known_plan(const Tensor& packed, bool may_copy = true);

// ValueError unless the plan is for so many nodes.
void check_plan_nodes(const KnownPlan& plan, int64_t num_nodes);

}  // namespace ghn
