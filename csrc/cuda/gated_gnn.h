// What the CUDA kernels of the gated GNN are given. Neither torch nor the CUDA runtime is needed to
// read this file, or those of the kernels: csrc/tests runs them on the host.
#pragma once

#include "../common/gated_gnn_layout.h"
#include "../common/gated_gnn_plan.h"

namespace ghn::cuda {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
// Distances whose inverses are at hand: of GHN-2 the largest is 50. A power of two.
constexpr int kDistances = 64;

// Type of x, the weights, the output and the gradients, against that of the arithmetic.
enum class Element : int32_t { same, float16, bfloat16 };

struct Problem {
  Shape shape;
  Element element;
  int64_t num_nodes, plan_size;
  int32_t sweeps;
};

template <class T>
struct ForwardArgs {
  Problem problem;
  const void* x;  // (N, C)
  const int32_t* plan;
  const T* packed;  // PackedWeights
  T* start;         // (N, C), padded
  T* record;        // of all sweeps, or of two that take turns
  int32_t records;
  void* out;       // (N, C)
  void* schedule;  // scratch of the kernels that sum edges ahead
};

template <class T>
struct BackwardArgs {
  Problem problem;
  const void *grad, *x;  // (N, C)
  const int32_t* plan;
  const T* packed;
  const T* record;
  T* factors;                      // of all sweeps
  T *start, *d_state, *d_message;  // (N, C), padded
  void* grad_x;                    // (N, C)
  T* partial;                      // PackedWeights of the gradients, so many times
  int64_t chunks;
  void* grads[12];  // of the weights, in the order of the schema
  void* schedule;   // as in ForwardArgs
};

// Shared memory of a block, in elements: what it cannot do without, for a tile of so many nodes of
// a level that go through the phases together; then the weights, and a row per node of the graph,
// each of them in shared memory if they fit and in global memory otherwise.
struct Footprint {
  static constexpr int64_t kFixed = 2 * kThreads + kDistances;
  int64_t tile, work, weights, row;

  static GHN_INLINE Footprint forward(const Record& r, int64_t tile, int64_t packed) {
    return {tile, kFixed + tile * (6 * r.c + r.hidden), packed, r.messages * r.c};
  }

  static GHN_INLINE Footprint backward(const Record& r, int64_t tile, int64_t packed) {
    return {tile, kFixed + tile * ((10 + r.messages) * r.c + 2 * r.hidden), packed, r.c};
  }

  // Bytes to ask for, of at most `most`, where the largest graph has so many nodes.
  GHN_INLINE int64_t bytes(int64_t largest_graph, int64_t most, int64_t element) const {
    int64_t elements = work;
    if ((elements + weights) * element <= most) elements += weights;
    if ((elements + row * largest_graph) * element <= most) elements += row * largest_graph;
    return elements * element;
  }
};

// The tile for a block that has so many bytes: 8 nodes, fewer for very wide rows, 0 if not even one
// node fits.
template <class T>
GHN_INLINE Footprint choose_tile(const Record& r, bool backward, int64_t most) {
  const int64_t packed = PackedWeights<T>::size(r);
  for (int64_t tile = 8; tile > 0; tile /= 2) {
    const Footprint f =
        backward ? Footprint::backward(r, tile, packed) : Footprint::forward(r, tile, packed);
    if (f.work * int64_t(sizeof(T)) <= most) return f;
  }
  return {0, 0, 0, 0};
}

}  // namespace ghn::cuda
