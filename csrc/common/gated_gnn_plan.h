// The packed plan of a batch of graphs: one int32 array that host and device read alike.
// gated_gnn_plan makes it, plan/gated_gnn_plan_check.h says when one is sound.
//
// Nodes are numbered through over the graphs; within the lists of edges and the orders a node is
// named by its number in its own graph. The edges of a node lie together, those at distance 1
// first (up to `split`), the virtual edges after them (up to the next `ptr`).
#pragma once

#include <cstdint>

#include "host_device.h"

namespace ghn {

// Edges by one of their ends.
struct EdgeList {
  const int32_t* ptr;       // (N + 1) first edge of each node
  const int32_t* split;     // (N) end of its edges at distance 1
  const int32_t* node;      // (M) the other end
  const int32_t* distance;  // (M)
};

// Order of a sweep: the nodes of each graph by level.
struct SweepOrder {
  const int32_t* node;         // (N)
  const int32_t* graph_level;  // (B + 1) first level of each graph
  const int32_t* level;        // (L + 1) first position of each level in `node`
  int32_t num_levels;
};

struct Plan {
  static constexpr int32_t kMagic = 0x47484E31;
  static constexpr int64_t kHeader = 8;

  int32_t num_graphs, num_nodes, num_edges, max_distance;
  const int32_t* graph_ptr;  // (B + 1) first node of each graph
  EdgeList in, out;          // by receiver and by sender, along the edges
  SweepOrder sweep[2];       // along the edges, and against them

  // Header: magic, B, N, M, levels forward, levels backward, largest distance, 0.
  static GHN_INLINE int64_t size(const int32_t* h) {
    const int64_t b = h[1], n = h[2], m = h[3];
    return kHeader + (b + 1) + 2 * ((n + 1) + n + 2 * m) + 2 * n + 2 * (b + 1) +
           (int64_t(h[4]) + 1) + (int64_t(h[5]) + 1);
  }

  template <class Int, class List>
  static GHN_INLINE Int* edge_list(Int* at, List& list, int64_t n, int64_t m) {
    list.ptr = at, at += n + 1;
    list.split = at, at += n;
    list.node = at, at += m;
    list.distance = at, at += m;
    return at;
  }

  static GHN_INLINE Plan read(const int32_t* data) {
    Plan plan;
    const int64_t b = data[1], n = data[2], m = data[3];
    plan.num_graphs = data[1];
    plan.num_nodes = data[2];
    plan.num_edges = data[3];
    plan.max_distance = data[6];
    const int32_t* at = data + kHeader;
    plan.graph_ptr = at, at += b + 1;
    at = edge_list(at, plan.in, n, m);
    at = edge_list(at, plan.out, n, m);
    for (int i = 0; i < 2; ++i) {
      SweepOrder& sweep = plan.sweep[i];
      sweep.num_levels = data[4 + i];
      sweep.node = at, at += n;
      sweep.graph_level = at, at += b + 1;
      sweep.level = at, at += int64_t(sweep.num_levels) + 1;
    }
    return plan;
  }

  // Edges from which a node gathers in a sweep, and those along which it is gathered from.
  GHN_INLINE const EdgeList& gather(int direction) const { return direction == 0 ? in : out; }
  GHN_INLINE const EdgeList& scatter(int direction) const { return direction == 0 ? out : in; }
};

}  // namespace ghn
