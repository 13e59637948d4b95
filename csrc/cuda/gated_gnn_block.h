// What the forward and the backward kernel of the gated GNN share. `Block` is the block of threads
// that runs them: index, number of blocks, number of the thread, and a barrier.
#pragma once

#include <cmath>

#include "../common/node_update.h"
#include "gated_gnn.h"

namespace ghn::cuda {

// Shared memory, handed out piece by piece.
template <class T>
struct Arena {
  T* next;
  int64_t left;  // elements

  GHN_DEVICE T* take(int64_t size) {
    if (size > left) return nullptr;
    T* at = next;
    next += size;
    left -= size;
    return at;
  }

  // What the block has been given memory for in any case. The compiler sees that it is shared memory
  // here, which has loads of its own.
  GHN_DEVICE T* need(int64_t size) {
    T* at = next;
    next += size;
    left -= size;
    return at;
  }
};

// The packed weights, copied to shared memory where they fit.
template <class T, class Block>
GHN_DEVICE PackedWeights<T> place_weights(const Block& block, Arena<T>& arena, const T* packed,
                                          const Record& r) {
  const int64_t size = PackedWeights<T>::size(r);
  T* at = arena.take(size);
  if (at == nullptr) return PackedWeights<T>::at(const_cast<T*>(packed), r);
  for (int64_t i = block.thread(); i < size; i += kThreads) at[i] = packed[i];
  return PackedWeights<T>::at(at, r);
}

// A wave of threads over the rows and columns of an array: columns lane, lane + lanes, ... of the
// rows row, row + rows, ...
struct Spread {
  int lane, lanes, row, rows;

  template <class Block>
  static GHN_DEVICE Spread over(const Block& block, int64_t width) {
    Spread s;
    s.lanes = width < 1 ? 1 : width < kThreads ? int(width) : kThreads;
    s.rows = kThreads / s.lanes;
    s.lane = block.thread() % s.lanes;
    s.row = block.thread() / s.lanes;
    if (s.row >= s.rows) s.row = 1 << 30;  // threads that are left over
    return s;
  }
};

GHN_DEVICE int bits_of(unsigned bits) {
#if defined(__CUDA_ARCH__)
  return __popc(bits);
#else
  return __builtin_popcount(bits);
#endif
}

template <class T>
struct alignas(16) Quad {
  T at[4];
};

// sum[q] += sum_i w[i, q * step] x[i], inputs ascending and a multiple of 16, `x` aligned.
template <int Q, class T>
GHN_DEVICE void add_product(T (&sum)[Q], const T* w, int64_t width, int64_t step, const T* x,
                            int64_t inputs) {
  for (int64_t i = 0; i < inputs; i += 16) {
    GHN_UNROLL
    for (int j = 0; j < 16; j += 4) {
      const Quad<T> value = *reinterpret_cast<const Quad<T>*>(x + i + j);
      GHN_UNROLL
      for (int k = 0; k < 4; ++k) {
        GHN_UNROLL
        for (int q = 0; q < Q; ++q) sum[q] += w[(i + j + k) * width + q * step] * value.at[k];
      }
    }
  }
}

template <class T>
GHN_DEVICE T affine(T start, const T* w, int64_t width, const T* x, int64_t inputs) {
  T sum[1] = {start};
  add_product(sum, w, width, 0, x, inputs);
  return sum[0];
}

// y[v, o] = start(v, o) + sum_i w[i, o] x[v, i] for all n rows; four of them share a pass over the
// weights.
template <class T, class Block, class Start>
GHN_DEVICE void affine_rows(const Block& block, const T* w, int64_t outputs, const T* x,
                            int64_t x_width, int64_t inputs, T* y, int64_t y_width, int64_t n,
                            const Start& start) {
  const Spread s = Spread::over(block, outputs);
  for (int64_t v = 4 * int64_t(s.row); v < n; v += 4 * int64_t(s.rows)) {
    const int count = n - v < 4 ? int(n - v) : 4;
    for (int64_t o = s.lane; o < outputs; o += s.lanes) {
      T sum[4];
      GHN_UNROLL
      for (int k = 0; k < 4; ++k) sum[k] = start(v + (k < count ? k : 0), o);
      for (int64_t i = 0; i < inputs; i += 4) {
        Quad<T> value[4];
        GHN_UNROLL
        for (int k = 0; k < 4; ++k) {
          const T* const row = x + (v + (k < count ? k : 0)) * x_width;
          value[k] = *reinterpret_cast<const Quad<T>*>(row + i);
        }
        GHN_UNROLL
        for (int j = 0; j < 4; ++j) {
          const T weight = w[(i + j) * outputs + o];
          GHN_UNROLL
          for (int k = 0; k < 4; ++k) sum[k] += weight * value[k].at[j];
        }
      }
      GHN_UNROLL
      for (int k = 0; k < 4; ++k) {
        if (k < count) y[(v + k) * y_width + o] = sum[k];
      }
    }
  }
}

// Rows of x or of a gradient, in the type of the arithmetic and padded.
template <class In, class T, class Block>
GHN_DEVICE void load_rows(const Block& block, const void* from, int64_t channels, T* to, int64_t c,
                          int64_t first, int64_t n) {
  const Spread s = Spread::over(block, c);
  for (int64_t v = first + s.row; v < first + n; v += s.rows) {
    for (int64_t j = s.lane; j < c; j += s.lanes) {
      to[v * c + j] =
          j < channels ? static_cast<T>(static_cast<const In*>(from)[v * channels + j]) : T(0);
    }
  }
}

template <class In, class T, class Block>
GHN_DEVICE void store_rows(const Block& block, void* to, int64_t channels, const T* from, int64_t c,
                           int64_t first, int64_t n) {
  const Spread s = Spread::over(block, channels);
  for (int64_t v = first + s.row; v < first + n; v += s.rows) {
    for (int64_t j = s.lane; j < channels; j += s.lanes) {
      static_cast<In*>(to)[v * channels + j] = static_cast<In>(from[v * c + j]);
    }
  }
}

template <class In, class T, class Block>
GHN_DEVICE void fill_nan(const Block& block, void* to, int64_t size) {
  const int64_t stride = int64_t(block.count()) * kThreads;
  for (int64_t i = int64_t(block.index()) * kThreads + block.thread(); i < size; i += stride) {
    static_cast<In*>(to)[i] = static_cast<In>(T(NAN));
  }
}

// The rows of a graph.
template <class In, class T, class Block>
GHN_DEVICE void fill_nan_rows(const Block& block, void* to, int64_t channels, int64_t first,
                              int64_t n) {
  In* const rows = static_cast<In*>(to) + first * channels;
  for (int64_t i = block.thread(); i < n * channels; i += kThreads) {
    rows[i] = static_cast<In>(T(NAN));
  }
}

// The plan as the kernels read it: they stay in bounds whatever its memory holds. The host has
// checked it (see plan/gated_gnn_plan_check.h), but cannot while a CUDA graph is captured.
struct SafePlan {
  Plan plan;
  bool fits;

  static GHN_DEVICE SafePlan read(const int32_t* data, const Problem& problem) {
    SafePlan safe;
    safe.fits = problem.plan_size >= Plan::kHeader && data[0] == Plan::kMagic && data[1] >= 0 &&
                data[2] == problem.num_nodes && data[3] >= 0 && data[4] >= 0 && data[5] >= 0 &&
                Plan::size(data) == problem.plan_size;
    if (safe.fits) safe.plan = Plan::read(data);
    return safe;
  }

  // Copies, since an array that is indexed at run time would not stay in registers.
  GHN_DEVICE SweepOrder order(int sweep) const {
    return sweep % 2 == 0 ? plan.sweep[0] : plan.sweep[1];
  }
  GHN_DEVICE EdgeList gather(int sweep) const { return sweep % 2 == 0 ? plan.in : plan.out; }
  GHN_DEVICE EdgeList scatter(int sweep) const { return sweep % 2 == 0 ? plan.out : plan.in; }

  struct Range {
    int64_t begin, end;
  };

  // [begin, end), or nothing if it is not part of [0, size).
  static GHN_DEVICE Range within(int64_t begin, int64_t end, int64_t size) {
    return begin >= 0 && begin <= end && end <= size ? Range{begin, end} : Range{0, 0};
  }

  GHN_DEVICE Range nodes(int64_t graph) const {
    return within(plan.graph_ptr[graph], plan.graph_ptr[graph + 1], plan.num_nodes);
  }
  GHN_DEVICE Range levels(const SweepOrder& order, int64_t graph) const {
    return within(order.graph_level[graph], order.graph_level[graph + 1], order.num_levels);
  }
  GHN_DEVICE Range places(const SweepOrder& order, int64_t level) const {
    return within(order.level[level], order.level[level + 1], plan.num_nodes);
  }
  GHN_DEVICE Range edges(const EdgeList& list, int64_t node) const {
    return within(list.ptr[node], list.ptr[node + 1], plan.num_edges);
  }
};

// The nodes of a tile, by their number in a graph of n > 0 nodes.
struct Tile {
  const int32_t* node;
  int count;
  int64_t n;

  GHN_DEVICE int64_t operator[](int k) const {
    const int32_t v = node[k];
    return uint64_t(int64_t(v)) < uint64_t(n) ? v : 0;
  }
};

// Sums along the edges of a node: over edges and over virtual edges, the latter weighted.
template <class T>
struct EdgeSums {
  T near, far;
};

// 1 / s for the distances s of a plan, in shared memory; a division takes longer than the rest of an
// edge.
template <class T>
struct Inverses {
  T* at;
  bool complete;  // whether they hold all distances of the plan

  template <class Block>
  static GHN_DEVICE Inverses fill(const Block& block, Arena<T>& arena, const Plan& plan) {
    Inverses inverses{arena.need(kDistances), plan.max_distance < kDistances};
    for (int s = block.thread(); s < kDistances; s += kThreads) inverses.at[s] = T(1) / T(s);
    return inverses;
  }

  // Stays inside the table whatever a plan's memory holds.
  GHN_DEVICE T operator[](int32_t distance) const {
    return complete ? at[distance & (kDistances - 1)] : T(1) / T(distance);
  }
};

// Rows that a node gathers: elements `column` and, if it is not negative, `column + second` of the
// rows of the nodes at the other ends; virtual edges take only the latter then.
//
// Edges are taken kAhead at a time, and nothing in between decides anything: first the nodes at
// their ends are read, then the rows, so that all of them are under way together. Places behind the
// last edge read the row of node 0 and count as zero.
template <class T>
struct EdgeRows {
  static constexpr int kAhead = 8;
  const T* from;
  int width, second;
  bool far;  // whether virtual edges count
  Inverses<T> inverses;

  GHN_DEVICE EdgeSums<T> sum(const EdgeList& list, int begin, int end, int split, int n,
                             int column) const {
    EdgeSums<T> sums{T(0), T(0)};
    const int near_end = end < split ? end : split;
    for (int e = begin; e < near_end; e += kAhead) {
      int row[kAhead];
      ends(list, e, near_end, n, row);
      T first[kAhead], other[kAhead];
      GHN_UNROLL
      for (int k = 0; k < kAhead; ++k) {
        const T* const at = from + int64_t(row[k] < 0 ? 0 : row[k]) * width + column;
        first[k] = at[0];
        other[k] = second >= 0 ? at[second] : T(0);
      }
      GHN_UNROLL
      for (int k = 0; k < kAhead; ++k) sums.near += row[k] < 0 ? T(0) : first[k] + other[k];
    }
    const int shift = column + (second >= 0 ? second : 0);
    for (int e = begin > near_end ? begin : near_end; e < end; e += kAhead) {
      int row[kAhead];
      ends(list, e, end, n, row);
      T value[kAhead], weight[kAhead];
      GHN_UNROLL
      for (int k = 0; k < kAhead; ++k) {
        weight[k] = inverses[list.distance[e + k < end ? e + k : e]];
        value[k] = from[int64_t(row[k] < 0 ? 0 : row[k]) * width + shift];
      }
      GHN_UNROLL
      for (int k = 0; k < kAhead; ++k) sums.far += row[k] < 0 ? T(0) : value[k] * weight[k];
    }
    return sums;
  }

 private:
  // The nodes at the other ends of edges e, e + 1, ..., -1 behind the last and for a node that the
  // graph does not have.
  static GHN_DEVICE void ends(const EdgeList& list, int e, int end, int n, int (&row)[kAhead]) {
    GHN_UNROLL
    for (int k = 0; k < kAhead; ++k) row[k] = list.node[e + k < end ? e + k : e];
    GHN_UNROLL
    for (int k = 0; k < kAhead; ++k) {
      row[k] = e + k < end && unsigned(row[k]) < unsigned(n) ? row[k] : -1;
    }
  }
};

// The sums for all nodes of a tile; store(k, column, sums) gets those of its k-th node. Where there
// are few nodes, several groups of threads share the edges of one, and `partial` (kThreads) holds
// what they found; it is read until the caller's next barrier. That is in one round only: there are
// several groups only where a row is narrower than the block.
template <class T, class Block, class Store>
GHN_DEVICE void over_edges(const Block& block, const SafePlan& safe, const EdgeList& list,
                           const EdgeRows<T>& rows, const Tile& tile, int64_t first, int64_t c,
                           EdgeSums<T>* partial, const Store& store) {
  const Spread s = Spread::over(block, c);
  const int parts = tile.count < s.rows ? s.rows / tile.count : 1;
  // Rows wider than the block are covered in several rounds.
  for (int64_t base = 0; base < c; base += s.lanes) {
    const int64_t column = base + s.lane;
    for (int task = s.row; task < tile.count * parts; task += s.rows) {
      const int k = task / parts, part = task % parts;
      const int64_t v = first + tile[k];
      // Edges and nodes are counted in 32 bits, as in the plan.
      const SafePlan::Range edges = safe.edges(list, v);
      const int first_edge = int(edges.begin), last_edge = int(edges.end), split = list.split[v];
      const int end = rows.far || split > last_edge ? last_edge : split;
      const int share = end > first_edge ? (end - first_edge + parts - 1) / parts : 0;
      const int begin = first_edge + part * share;
      EdgeSums<T> sums{T(0), T(0)};
      if (column < c) {
        sums = rows.sum(list, begin, begin + share < end ? begin + share : end, split,
                        int(tile.n), int(column));
      }
      if (parts > 1) {
        partial[task * s.lanes + s.lane] = sums;
      } else if (column < c) {
        store(k, column, sums);
      }
    }
    if (parts > 1) {
      block.sync();
      if (s.row < tile.count && column < c) {
        EdgeSums<T> sums{T(0), T(0)};
        for (int part = 0; part < parts; ++part) {
          const EdgeSums<T>& p = partial[(s.row * parts + part) * s.lanes + s.lane];
          sums.near += p.near;
          sums.far += p.far;
        }
        store(s.row, column, sums);
      }
    }
  }
}

}  // namespace ghn::cuda
