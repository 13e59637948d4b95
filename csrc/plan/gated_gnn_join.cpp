// Packed plans side by side: their nodes, edges and levels numbered through.

#include <algorithm>
#include <limits>
#include <vector>

#include "../common/checks.h"
#include "../common/torch_call.h"
#include "gated_gnn_plan_check.h"

namespace ghn {
namespace {

Plan read_plan(const Tensor& packed, const char* name, int64_t index) {
  check_dtype(packed, kInt, name);
  GHN_CHECK(packed.device().is_cpu() && packed.dim() == 1 && packed.is_contiguous(), name, ": ",
            index, ": needs a contiguous vector on the CPU");
  const auto* data = packed.const_data_ptr<int32_t>();
  const bool valid = packed.numel() >= Plan::kHeader && data[0] == Plan::kMagic &&
                     *std::min_element(data + 1, data + Plan::kHeader) >= 0 &&
                     Plan::size(data) == packed.numel();
  GHN_CHECK(valid, name, ": ", index, ": got ", packed.numel(),
            " numbers that are no plan of this version");
  return Plan::read(data);
}

// The numbers by which gated_gnn_plan_edges finds its way.
void check_list(const Plan& plan) {
  const EdgeList& list = plan.out;
  bool valid = plan.graph_ptr[0] == 0 && plan.graph_ptr[plan.num_graphs] == plan.num_nodes &&
               list.ptr[0] == 0 && list.ptr[plan.num_nodes] == plan.num_edges;
  for (int32_t g = 0; g < plan.num_graphs; ++g) {
    valid &= plan.graph_ptr[g] <= plan.graph_ptr[g + 1];
  }
  for (int32_t v = 0; v < plan.num_nodes; ++v) {
    valid &= list.ptr[v] <= list.split[v] && list.split[v] <= list.ptr[v + 1];
  }
  GHN_CHECK(valid, "plan: its edges are not in order");
}

int32_t* append(int32_t*& at, const int32_t* from, int64_t count, int32_t shift) {
  for (int64_t i = 0; i < count; ++i) at[i] = from[i] + shift;
  return at += count;
}

// Where the arrays of the joined plan are filled up to.
struct Cursor {
  int32_t *ptr, *split, *node, *distance;

  explicit Cursor(const EdgeList& list)
      : ptr(const_cast<int32_t*>(list.ptr)),
        split(const_cast<int32_t*>(list.split)),
        node(const_cast<int32_t*>(list.node)),
        distance(const_cast<int32_t*>(list.distance)) {}

  void add(const EdgeList& list, int64_t nodes, int64_t edges, int32_t shift) {
    append(ptr, list.ptr, nodes, shift);
    append(split, list.split, nodes, shift);
    node = std::copy_n(list.node, edges, node);
    distance = std::copy_n(list.distance, edges, distance);
  }
};

void join_sweeps(const SweepOrder& joined, const std::vector<Plan>& plans, int direction,
                 int32_t num_nodes) {
  auto* node = const_cast<int32_t*>(joined.node);
  auto* graph_level = const_cast<int32_t*>(joined.graph_level);
  auto* level = const_cast<int32_t*>(joined.level);
  int32_t nodes = 0, levels = 0;
  for (const Plan& plan : plans) {
    const SweepOrder& sweep = plan.sweep[direction];
    node = std::copy_n(sweep.node, plan.num_nodes, node);
    append(graph_level, sweep.graph_level, plan.num_graphs, levels);
    append(level, sweep.level, sweep.num_levels, nodes);
    nodes += plan.num_nodes;
    levels += sweep.num_levels;
  }
  *graph_level = levels;
  *level = num_nodes;
}

}  // namespace

Tensor gated_gnn_join_cpu(const TensorList plans) {
  GHN_CHECK(!plans.empty(), "plans: got none, needs at least one");
  std::vector<Plan> parts;
  int64_t total[7] = {0};
  for (size_t i = 0; i < plans.size(); ++i) {
    parts.push_back(read_plan(plans[i], "plans", int64_t(i)));
    check_plan(plans[i]);
    const auto* data = plans[i].const_data_ptr<int32_t>();
    for (int j = 1; j < 6; ++j) total[j] += data[j];
    total[6] = std::max<int64_t>(total[6], data[6]);
  }
  for (int j = 1; j < 6; ++j) {
    GHN_CHECK(total[j] < std::numeric_limits<int32_t>::max() / 8, "plans: have ", total[j],
              " nodes, edges or levels together, needs fewer than 2^28");
  }
  int32_t header[Plan::kHeader] = {Plan::kMagic};
  for (int j = 1; j < 7; ++j) header[j] = int32_t(total[j]);
  Tensor packed = empty({Plan::size(header)}, kInt);
  int32_t* data = packed.data_ptr<int32_t>();
  std::copy_n(header, Plan::kHeader, data);
  const Plan joined = Plan::read(data);
  Cursor in(joined.in), out(joined.out);
  auto* graph_ptr = const_cast<int32_t*>(joined.graph_ptr);
  int32_t nodes = 0, edges = 0;
  for (const Plan& plan : parts) {
    append(graph_ptr, plan.graph_ptr, plan.num_graphs, nodes);
    in.add(plan.in, plan.num_nodes, plan.num_edges, edges);
    out.add(plan.out, plan.num_nodes, plan.num_edges, edges);
    nodes += plan.num_nodes;
    edges += plan.num_edges;
  }
  *graph_ptr = nodes;
  *in.ptr = *out.ptr = edges;
  for (int i = 0; i < 2; ++i) join_sweeps(joined.sweep[i], parts, i, nodes);
  remember_made_plan(packed);
  return packed;
}

Tensor gated_gnn_plan_edges_cpu(const Tensor& packed) {
  const Plan plan = read_plan(packed, "plan", 0);
  Tensor result = empty({plan.num_edges, 3}, kLong);
  auto* row = result.data_ptr<int64_t>();
  const EdgeList& list = plan.out;
  check_list(plan);
  for (int32_t g = 0; g < plan.num_graphs; ++g) {
    const int32_t first = plan.graph_ptr[g];
    for (int32_t u = first; u < plan.graph_ptr[g + 1]; ++u) {
      // Edges and virtual edges of a node are sorted each; merged, they are in the order of `to`.
      int32_t near = list.ptr[u], far = list.split[u];
      const int32_t near_end = far, far_end = list.ptr[u + 1];
      while (near < near_end || far < far_end) {
        const bool take_near =
            far == far_end || (near < near_end && list.node[near] < list.node[far]);
        const int32_t e = take_near ? near++ : far++;
        *row++ = u;
        *row++ = first + list.node[e];
        *row++ = list.distance[e];
      }
    }
  }
  return result;
}

STABLE_TORCH_LIBRARY_IMPL(ghn_fast, CPU, m) {
  m.impl("gated_gnn_join", boxed<&gated_gnn_join_cpu>);
  m.impl("gated_gnn_plan_edges", boxed<&gated_gnn_plan_edges_cpu>);
}

}  // namespace ghn
