// Distances by one pass over the nodes per direction: the row of a node is the least of its
// neighbours' rows, plus one. The edges of a node within the cutoff are then what its row lists.
#include "deepnets_schedule.h"

#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <limits>

#include "../common/plan.h"

namespace ghn::deepnets {
namespace {

// Signed, since SSE2, which every x86-64 has, knows the least of signed 16-bit numbers only.
using Distance = int16_t;
constexpr Distance kFar = std::numeric_limits<Distance>::max() - 1;

// Neighbours in one direction, ascending.
struct Neighbours {
  const int32_t *ptr, *node;
};

struct Workspace {
  std::vector<int32_t> from, ptr, levels, place, row_node, row_distance;
  std::vector<Distance> distances[2];
};

// Edges by their receiver.
Neighbours reverse(const Graph& graph, Workspace& work) {
  const int32_t n = graph.nodes();
  work.ptr.assign(n + 1, 0);
  work.from.resize(graph.to.size());
  for (const int32_t v : graph.to) ++work.ptr[v + 1];
  for (int32_t v = 0; v < n; ++v) work.ptr[v + 1] += work.ptr[v];
  work.place.assign(work.ptr.begin(), work.ptr.end() - 1);
  for (int32_t u = 0; u < n; ++u) {
    for (int32_t e = graph.ptr[u]; e < graph.ptr[u + 1]; ++e) {
      work.from[work.place[graph.to[e]]++] = u;
    }
  }
  return {work.ptr.data(), work.from.data()};
}

// Rows of distances along the edges (to later nodes) or against them (to earlier ones).
void fill_distances(std::vector<Distance>& rows, const Neighbours& next, int32_t n, bool along) {
  rows.assign(size_t(n) * n, kFar);
  for (int32_t i = 0; i < n; ++i) {
    const int32_t u = along ? n - 1 - i : i;
    Distance* __restrict row = rows.data() + size_t(u) * n;
    for (int32_t e = next.ptr[u]; e < next.ptr[u + 1]; ++e) {
      const int32_t v = next.node[e];
      const Distance* __restrict other = rows.data() + size_t(v) * n;
      const int32_t first = along ? v : 0, last = along ? n : v + 1;
      for (int32_t w = first; w < last; ++w) {
        row[w] = std::min<Distance>(row[w], Distance(other[w] + 1));
      }
      row[v] = 1;
    }
  }
}

int64_t count_pairs(const std::vector<Distance>& rows, Distance cutoff) {
  int64_t count = 0;
  const Distance* row = rows.data();
  // Chunks whose count fits into the 16 bits of a lane.
  for (size_t i = 0; i < rows.size();) {
    const size_t stop = std::min(rows.size(), i + 16384);
    int16_t part = 0;
    for (; i < stop; ++i) part = int16_t(part + (row[i] <= cutoff));
    count += part;
  }
  return count;
}

// Lists of one direction: at each node those at distance 1, then the others within the cutoff.
int32_t fill_list(const EdgeList& list, const Neighbours& next, const std::vector<Distance>& rows,
                  int32_t n, bool along, Distance cutoff, Workspace& work) {
  auto* ptr = const_cast<int32_t*>(list.ptr);
  auto* split = const_cast<int32_t*>(list.split);
  auto* node = const_cast<int32_t*>(list.node);
  auto* distance = const_cast<int32_t*>(list.distance);
  work.row_node.resize(n + 1), work.row_distance.resize(n + 1);
  int32_t at = 0, largest = 0;
  for (int32_t u = 0; u < n; ++u) {
    ptr[u] = at;
    for (int32_t e = next.ptr[u]; e < next.ptr[u + 1]; ++e, ++at) {
      node[at] = next.node[e];
      distance[at] = 1;
      largest = std::max(largest, 1);
    }
    split[u] = at;
    if (cutoff < 2) continue;
    const Distance* row = rows.data() + size_t(u) * n;
    const int32_t first = along ? u + 1 : 0, last = along ? n : u;
    int32_t* row_node = work.row_node.data();
    int32_t* row_distance = work.row_distance.data();
    int32_t count = 0;
    const auto range = uint16_t(cutoff - 2);
    for (int32_t v = first; v < last; ++v) {
      const Distance d = row[v];
      row_node[count] = v;
      row_distance[count] = d;
      count += uint16_t(d - 2) <= range;
    }
    for (int32_t i = 0; i < count; ++i) largest = std::max(largest, row_distance[i]);
    std::copy_n(row_node, count, node + at);
    std::copy_n(row_distance, count, distance + at);
    at += count;
  }
  ptr[n] = at;
  return largest;
}

// Level of each node: edges on the longest path that leads to it, in the direction of the sweep.
int32_t fill_levels(int32_t* level, const Neighbours& previous, int32_t n, bool ascending) {
  int32_t most = 0;
  for (int32_t i = 0; i < n; ++i) {
    const int32_t v = ascending ? i : n - 1 - i;
    level[v] = 0;
    for (int32_t e = previous.ptr[v]; e < previous.ptr[v + 1]; ++e) {
      level[v] = std::max(level[v], level[previous.node[e]] + 1);
    }
    most = std::max(most, level[v]);
  }
  return most + 1;
}

void fill_order(const SweepOrder& sweep, const int32_t* level, int32_t n, Workspace& work) {
  auto* node = const_cast<int32_t*>(sweep.node);
  auto* start = const_cast<int32_t*>(sweep.level);
  auto* graph_level = const_cast<int32_t*>(sweep.graph_level);
  graph_level[0] = 0;
  graph_level[1] = sweep.num_levels;
  std::fill_n(start, sweep.num_levels + 1, 0);
  for (int32_t v = 0; v < n; ++v) ++start[level[v] + 1];
  for (int32_t l = 0; l < sweep.num_levels; ++l) start[l + 1] += start[l];
  work.place.assign(start, start + sweep.num_levels);
  for (int32_t v = 0; v < n; ++v) node[work.place[level[v]]++] = v;
}

}  // namespace

at::Tensor make_plan(const Graph& graph, int64_t cutoff) {
  const int32_t n = graph.nodes();
  TORCH_CHECK_VALUE(n <= kMostNodes, "records: the graph has ", n, " nodes, needs at most ",
                    kMostNodes);
  // No path of such a graph is longer, so that distances always fit.
  const auto limit = Distance(std::min<int64_t>(cutoff, kMostNodes));
  thread_local Workspace work;
  const Neighbours out{graph.ptr.data(), graph.to.data()};
  const Neighbours in = reverse(graph, work);
  int64_t edges = graph.to.size();
  if (limit > 1) {
    fill_distances(work.distances[0], out, n, true);
    fill_distances(work.distances[1], in, n, false);
    edges = count_pairs(work.distances[0], limit);
  }
  work.levels.resize(2 * size_t(n));
  int32_t* levels[2] = {work.levels.data(), work.levels.data() + n};
  const int32_t counts[2] = {fill_levels(levels[0], in, n, true),
                             fill_levels(levels[1], out, n, false)};
  const int32_t header[Plan::kHeader] = {Plan::kMagic, 1, n, int32_t(edges), counts[0], counts[1],
                                         0, 0};
  at::Tensor packed = at::empty({Plan::size(header)}, at::kInt);
  int32_t* data = packed.data_ptr<int32_t>();
  std::copy_n(header, Plan::kHeader, data);
  const Plan plan = Plan::read(data);
  auto* graph_ptr = const_cast<int32_t*>(plan.graph_ptr);
  graph_ptr[0] = 0, graph_ptr[1] = n;
  fill_list(plan.in, in, work.distances[1], n, false, limit, work);
  data[6] = fill_list(plan.out, out, work.distances[0], n, true, limit, work);
  for (int i = 0; i < 2; ++i) fill_order(plan.sweep[i], levels[i], n, work);
  return packed;
}

}  // namespace ghn::deepnets
