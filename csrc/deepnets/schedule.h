// Shortest-path distances of an architecture graph, and the packed plan of its message passing
// (common/gated_gnn_plan.h), straight from its edges.
#pragma once

#include "../common/tensor.h"
#include "graph.h"

namespace ghn::deepnets {

// Nodes of the largest graph: its matrices of distances fit into 256 MB.
constexpr int64_t kMostNodes = 8192;

// int32 tensor, equal to gated_gnn_plan(shortest_distances(edges, N, cutoff), {0, N}).
Tensor make_plan(const Graph& graph, int64_t cutoff);

}  // namespace ghn::deepnets
