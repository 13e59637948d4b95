// What the kernels of the gated GNN on CPU work on: packed weights, and one graph in one sweep.
#pragma once

#include <cstdint>

#include "../common/plan.h"

namespace ghn {

// Weights, packed and padded with zeros: rows are inputs and columns outputs, so that outputs are
// vectorised. The transposed ones, for the backward, have the gates in the order of the gradients.
template <class T>
struct Packed {
  const T *ih, *hh;        // (C, 3 C): r z n
  const T *ih_b, *hh_b;    // (3 C)
  const T *first, *first_b;          // (C, H_1 + H_2), (H_1 + H_2)
  const T *second[2], *second_b[2];  // (H_k, C), (C)
  const T *ih_t, *hh_t;    // (3 C, C): n r z, and r z n
  const T *first_t;        // (H_1 + H_2, C)
  const T *second_t[2];    // (C, H_k)
};

// Sums of the gradients of the weights, in the layout of Packed's transposed weights.
template <class T>
struct WeightSums {
  T *ih, *ih_b;            // (3 C, C), (3 C): n r z
  T *hh, *hh_b;            // (3 C, C), (3 C): r z n
  T *first, *first_b;      // (H_1 + H_2, C), (H_1 + H_2)
  T *second[2], *second_b[2];  // (C, H_k), (C)
};

// One graph in one sweep. Arrays have a row per node of the graph.
template <class T>
struct Walk {
  Record record;
  int64_t channels, hidden[2];  // without padding: inputs that count
  Packed<T> weights;
  const T* inverse;             // 1 / distance, by distance
  int64_t num_nodes;
  // Row `v` of the graph is entry `v` of these; `node` and `distance` are those of the whole batch.
  const int32_t *gather_ptr, *gather_split, *scatter_ptr, *scatter_split;
  const EdgeList *gather, *scatter;
  const int32_t* order;         // nodes of the graph, by level
  const T* state;               // before the sweep
  Fields<T> fields;             // of the sweep
  // Backward: gradient of the state, after the node's update and then before it; of the message;
  // of the gates (n r z hn); of the hidden layers; of what is sent.
  T *d_state, *d_message, *d_gates, *d_hidden, *d_sent;
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
