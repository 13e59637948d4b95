// What the kernels of the gated GNN on CPU work on: one graph in one sweep.
#pragma once

#include <cstdint>

#include "../common/gated_gnn_layout.h"
#include "../common/gated_gnn_plan.h"

namespace ghn {

// One graph in one sweep. Arrays have a row per node of the graph.
template <class T>
struct Walk {
  Record record;
  int64_t channels, hidden[2];  // without padding: inputs that count
  PackedWeights<T> weights;
  const T* inverse;             // 1 / distance, by distance
  int64_t num_nodes;
  // Row `v` of the graph is entry `v` of these; `node` and `distance` are those of the whole batch.
  const int32_t *gather_ptr, *gather_split, *scatter_ptr, *scatter_split;
  const EdgeList *gather, *scatter;
  const int32_t* order;         // nodes of the graph, by level
  const T* state;               // before the sweep
  Fields<T> fields;             // of the sweep
  // Backward: gradient of the state, after the node's update and then before it; of the message;
  // and of the rest.
  T *d_state, *d_message;
  Factors<T> d;
};

// The kernels for one instruction set.
template <class T>
struct Kernels {
  // What the state before the sweep adds to the gates, for the nodes [begin, end).
  void (*prepare)(const Walk<T>&, int64_t begin, int64_t end);
  // Update the nodes at the places [begin, end) of the order, all of one level.
  void (*visit)(const Walk<T>&, int64_t begin, int64_t end);
  // The same, backward.
  void (*visit_backward)(const Walk<T>&, int64_t begin, int64_t end);
  // What the gates add to the gradient of the state before the sweep, for the nodes [begin, end).
  void (*finish_backward)(const Walk<T>&, int64_t begin, int64_t end);
  // out[o, j] += sum over rows of a[row, o] * b[row, j], for o < outputs and j < columns, both
  // multiples of 16; bias[o] += sum over rows of a[row, o].
  void (*outer)(T* out, T* bias, const T* a, int64_t a_width, const T* b, int64_t b_width,
                int64_t rows, int64_t outputs, int64_t columns);
};

}  // namespace ghn
