// The packed plan of a batch of graphs from its list of edges. Counting sorts, linear in the edges.

#include <algorithm>
#include <limits>
#include <vector>

#include "../common/checks.h"
#include "../common/torch_call.h"
#include "gated_gnn_plan_check.h"

namespace ghn {
namespace {

struct Edges {
  const int64_t* rows;
  int64_t count;
  int64_t end(int64_t edge, bool receiver) const { return rows[3 * edge + (receiver ? 1 : 0)]; }
  int64_t distance(int64_t edge) const { return rows[3 * edge + 2]; }
};

std::vector<int32_t> graph_of_node(const Tensor& offsets, int64_t num_graphs) {
  const int64_t* offset = offsets.const_data_ptr<int64_t>();
  GHN_CHECK(offset[0] == 0, "offsets: starts with ", offset[0], ", needs 0");
  for (int64_t g = 0; g < num_graphs; ++g) {
    GHN_CHECK(offset[g] <= offset[g + 1], "offsets: ", offset[g + 1], " comes after ", offset[g],
              ", needs ascending numbers");
  }
  const int64_t limit = std::numeric_limits<int32_t>::max() / 4;
  GHN_CHECK(offset[num_graphs] < limit, "offsets: got ", offset[num_graphs],
            " nodes, needs fewer than ", limit);
  std::vector<int32_t> graph(offset[num_graphs]);
  for (int64_t g = 0; g < num_graphs; ++g) {
    std::fill(graph.begin() + offset[g], graph.begin() + offset[g + 1], int32_t(g));
  }
  return graph;
}

void check_edges(const Edges& edges, const std::vector<int32_t>& graph) {
  const int64_t num_nodes = graph.size();
  for (int64_t e = 0; e < edges.count; ++e) {
    const int64_t source = edges.end(e, false), target = edges.end(e, true);
    GHN_CHECK(source >= 0 && source < num_nodes && target >= 0 && target < num_nodes, "edges: row ",
              e, " joins nodes ", source, " and ", target, ", needs nodes from 0 to ",
              num_nodes - 1);
    GHN_CHECK(source < target, "edges: row ", e, " leads from node ", source, " to node ", target,
              ", needs nodes numbered in topological order; is there a cycle?");
    GHN_CHECK(graph[source] == graph[target], "edges: row ", e, " joins nodes ", source, " and ",
              target, ", which belong to different graphs");
    GHN_CHECK(edges.distance(e) >= 1 && edges.distance(e) <= num_nodes, "edges: row ", e,
              " has distance ", edges.distance(e), ", needs 1 to ", num_nodes);
  }
}

void fill_edge_list(const EdgeList& list, const Edges& edges, bool by_receiver,
                    const int64_t* offset, const std::vector<int32_t>& graph) {
  auto* ptr = const_cast<int32_t*>(list.ptr);
  auto* split = const_cast<int32_t*>(list.split);
  auto* node = const_cast<int32_t*>(list.node);
  auto* distance = const_cast<int32_t*>(list.distance);
  const int64_t num_nodes = graph.size();
  std::vector<int32_t> near(num_nodes, 0), far(num_nodes, 0);
  for (int64_t e = 0; e < edges.count; ++e) {
    ++(edges.distance(e) == 1 ? near : far)[edges.end(e, by_receiver)];
  }
  int32_t next = 0;
  for (int64_t v = 0; v < num_nodes; ++v) {
    ptr[v] = next;
    split[v] = next + near[v];
    next = split[v] + far[v];
    near[v] = ptr[v];
    far[v] = split[v];
  }
  ptr[num_nodes] = next;
  for (int64_t e = 0; e < edges.count; ++e) {
    const int64_t v = edges.end(e, by_receiver);
    const int32_t place = (edges.distance(e) == 1 ? near : far)[v]++;
    node[place] = int32_t(edges.end(e, !by_receiver) - offset[graph[v]]);
    distance[place] = int32_t(edges.distance(e));
  }
}

// Level of each node: edges on the longest path that leads to it, in the direction of the sweep.
std::vector<int32_t> node_levels(const EdgeList& gather, bool ascending, const int64_t* offset,
                                 const std::vector<int32_t>& graph) {
  const int64_t num_nodes = graph.size();
  std::vector<int32_t> level(num_nodes, 0);
  for (int64_t i = 0; i < num_nodes; ++i) {
    const int64_t v = ascending ? i : num_nodes - 1 - i;
    for (int32_t e = gather.ptr[v]; e < gather.ptr[v + 1]; ++e) {
      level[v] = std::max(level[v], level[offset[graph[v]] + gather.node[e]] + 1);
    }
  }
  return level;
}

int32_t count_levels(const std::vector<int32_t>& level, const int64_t* offset, int64_t num_graphs) {
  int32_t total = 0;
  for (int64_t g = 0; g < num_graphs; ++g) {
    if (offset[g] == offset[g + 1]) continue;
    total += *std::max_element(level.begin() + offset[g], level.begin() + offset[g + 1]) + 1;
  }
  return total;
}

void fill_order(const SweepOrder& sweep, const std::vector<int32_t>& level, const int64_t* offset,
                int64_t num_graphs) {
  auto* node = const_cast<int32_t*>(sweep.node);
  auto* graph_level = const_cast<int32_t*>(sweep.graph_level);
  auto* start = const_cast<int32_t*>(sweep.level);
  int32_t first = 0;
  for (int64_t g = 0; g < num_graphs; ++g) {
    graph_level[g] = first;
    const auto begin = level.begin() + offset[g], end = level.begin() + offset[g + 1];
    const int32_t count = begin == end ? 0 : *std::max_element(begin, end) + 1;
    std::vector<int32_t> place(count + 1, 0);
    for (auto it = begin; it != end; ++it) ++place[*it + 1];
    place[0] = int32_t(offset[g]);
    for (int32_t l = 0; l < count; ++l) {
      start[first + l] = place[l];
      place[l + 1] += place[l];
    }
    for (auto it = begin; it != end; ++it) node[place[*it]++] = int32_t(it - begin);
    first += count;
  }
  graph_level[num_graphs] = first;
  start[first] = int32_t(offset[num_graphs]);
}

}  // namespace

Tensor gated_gnn_plan_cpu(const Tensor& edges, const Tensor& offsets) {
  check_dtype(edges, kLong, "edges");
  check_dtype(offsets, kLong, "offsets");
  GHN_CHECK(edges.dim() == 2 && edges.size(1) == 3, "edges: got shape ", edges.sizes(),
            ", needs (M, 3)");
  GHN_CHECK(offsets.dim() == 1 && offsets.numel() >= 1, "offsets: got shape ", offsets.sizes(),
            ", needs (B + 1,)");
  GHN_CHECK(edges.size(0) < std::numeric_limits<int32_t>::max() / 8, "edges: got ", edges.size(0),
            " rows, needs fewer than ", std::numeric_limits<int32_t>::max() / 8);
  const Tensor rows = edges.contiguous(), ends = offsets.contiguous();
  const int64_t num_graphs = ends.numel() - 1;
  const int64_t* offset = ends.const_data_ptr<int64_t>();
  const std::vector<int32_t> graph = graph_of_node(ends, num_graphs);
  const Edges list{rows.const_data_ptr<int64_t>(), rows.size(0)};
  check_edges(list, graph);

  int64_t max_distance = 0;
  for (int64_t e = 0; e < list.count; ++e) max_distance = std::max(max_distance, list.distance(e));
  // The levels, and with them the size of the plan, are known once the lists of edges are.
  std::vector<int32_t> head(Plan::kHeader, 0);
  head = {Plan::kMagic, int32_t(num_graphs),   int32_t(graph.size()), int32_t(list.count), 0, 0,
          int32_t(max_distance), 0};
  std::vector<int32_t> draft(Plan::size(head.data()));
  std::copy(head.begin(), head.end(), draft.begin());
  Plan plan = Plan::read(draft.data());
  fill_edge_list(plan.in, list, true, offset, graph);
  fill_edge_list(plan.out, list, false, offset, graph);
  const std::vector<int32_t> levels[2] = {node_levels(plan.in, true, offset, graph),
                                          node_levels(plan.out, false, offset, graph)};
  for (int i = 0; i < 2; ++i) draft[4 + i] = count_levels(levels[i], offset, num_graphs);

  Tensor packed = empty({Plan::size(draft.data())}, kInt);
  int32_t* data = packed.data_ptr<int32_t>();
  const int64_t lists = plan.sweep[0].node - draft.data();
  std::copy(draft.begin(), draft.begin() + lists, data);
  plan = Plan::read(data);
  for (int64_t g = 0; g <= num_graphs; ++g) {
    const_cast<int32_t*>(plan.graph_ptr)[g] = int32_t(offset[g]);
  }
  for (int i = 0; i < 2; ++i) fill_order(plan.sweep[i], levels[i], offset, num_graphs);
  remember_made_plan(packed);
  return packed;
}

Tensor gated_gnn_plan_to(const Tensor& plan, const Device& device, bool pin) {
  check_dtype(plan, kInt, "plan");
  GHN_CHECK(plan.dim() == 1 && plan.is_contiguous(), "plan: got shape ", plan.sizes(),
            " and strides ", plan.strides(), ", needs a contiguous vector");
  check_device(plan, kCPU, "plan");
  GHN_CHECK(!pin || device.is_cpu(), "pin: got true for ", device,
            ", needs false: page-locked memory is the host's");
  check_plan(plan);
  // The copy is queued, and nobody waits for it; memory that is not page-locked has been read when
  // the call returns.
  const Tensor moved = pin ? plan.pin_memory() : plan.to(device, /*non_blocking=*/true);
  remember_moved_plan(moved, plan.const_data_ptr<int32_t>());
  return moved;
}

STABLE_TORCH_LIBRARY_IMPL(ghn_fast, CPU, m) {
  m.impl("gated_gnn_plan", boxed<&gated_gnn_plan_cpu>);
  m.impl("gated_gnn_plan_to", boxed<&gated_gnn_plan_to>);
}

}  // namespace ghn
