// When each edge of a sweep can be summed, found out on the GPU from the levels that a plan has, as
// the code of one block. `Block` is the block of threads, as in gated_gnn_block.h, with the warp's
// ballot and shuffles.
//
// An edge is late if its other end lies in the level that is visited right before, and early if it
// lies further away. Early edges are summed while that level is still worked on, and only the late
// ones are waited for. Each visit of a node has its edges in one piece, the early ones first; each
// edge says which row it adds and with what weight, so that nothing is divided or looked up when
// it is summed.
//
// A plan stays what it is: this is scratch memory of a call, of which the kernels believe as little
// as of the plan.
#pragma once

#include "gated_gnn_block.h"

namespace ghn::cuda {

template <class T>
struct alignas(2 * sizeof(T)) Edge {
  int32_t row;  // of what the nodes of the graph have to offer
  T weight;     // 1 / distance
};

struct alignas(16) Visit {
  int32_t node;              // in its graph
  int32_t begin, late, end;  // edges [begin, late) are early, [late, end) late
};

// The scratch memory: for both directions a visit per node, in the order of the sweep, the level
// of each node, and the edges. And rows of so many elements for graphs that shared memory has no
// room for.
template <class T>
struct Schedule {
  Visit* visit;    // (2, N)
  Edge<T>* edge;   // (2, most_edges)
  T* row;          // (N, row_width)
  int32_t* level;  // (2, N)
  int64_t num_nodes, most_edges;

  // A plan of so many numbers has no more edges: each takes four of them.
  static GHN_INLINE int64_t edges_of(int64_t plan_size) { return plan_size / 4; }

  static GHN_INLINE int64_t row_width(const Record& r) { return r.messages * r.c; }

  static GHN_INLINE int64_t bytes(const Problem& problem) {
    const int64_t row = row_width(problem.shape.record) * int64_t(sizeof(T));
    return problem.num_nodes * (2 * int64_t(sizeof(Visit) + sizeof(int32_t)) + row) +
           2 * edges_of(problem.plan_size) * int64_t(sizeof(Edge<T>));
  }

  static GHN_INLINE Schedule at(void* memory, const Problem& problem) {
    const int64_t num_nodes = problem.num_nodes, plan_size = problem.plan_size;
    Schedule s;
    s.num_nodes = num_nodes;
    s.most_edges = edges_of(plan_size);
    s.visit = static_cast<Visit*>(memory);
    s.edge = reinterpret_cast<Edge<T>*>(s.visit + 2 * num_nodes);
    s.row = reinterpret_cast<T*>(s.edge + 2 * s.most_edges);
    s.level = reinterpret_cast<int32_t*>(s.row + num_nodes * row_width(problem.shape.record));
    return s;
  }
};

// Number of the last of `count` > 0 ascending numbers that is at most `value`; the first one, if
// none is.
GHN_DEVICE int64_t place_in(const int32_t* numbers, int64_t count, int64_t value) {
  int64_t low = 0, high = count;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (numbers[middle] <= value) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

// A place in the order of a sweep, which is that of a graph's node.
struct Place {
  int64_t first, n, node, level;  // of the graph; the node in it; its level

  static GHN_DEVICE Place find(const SafePlan& safe, int direction, int64_t at) {
    const int64_t g = place_in(safe.plan.graph_ptr, safe.plan.num_graphs, at);
    const SafePlan::Range nodes = safe.nodes(g);
    const SweepOrder order = safe.order(direction);
    const SafePlan::Range levels = safe.levels(order, g);
    Place place{nodes.begin, nodes.end - nodes.begin, 0, 0};
    if (levels.end > levels.begin) {
      place.level = place_in(order.level + levels.begin, levels.end - levels.begin, at);
    }
    const Tile only{order.node + at, 1, place.n};
    place.node = only[0];
    return place;
  }
};

// Note the level of each node.
template <class T, class Block>
GHN_DEVICE void levels_block(const Block& block, const Problem& problem, const int32_t* plan,
                             void* memory) {
  const SafePlan safe = SafePlan::read(plan, problem);
  if (!safe.fits || safe.plan.num_graphs == 0) return;
  const Schedule<T> s = Schedule<T>::at(memory, problem);
  const int64_t N = problem.num_nodes, stride = int64_t(block.count()) * kThreads;
  for (int64_t i = int64_t(block.index()) * kThreads + block.thread(); i < 2 * N; i += stride) {
    const int direction = i < N ? 0 : 1;
    const Place place = Place::find(safe, direction, i - direction * N);
    if (place.n > 0) s.level[direction * N + place.first + place.node] = int32_t(place.level);
  }
}

// Fill in the visits and their edges, a warp for each visit. In forward the rows are those that
// MessageRows has, and edges are gathered; in backward they are nodes, and edges are those along
// which the node was gathered from.
template <class T, class Block>
GHN_DEVICE void visits_block(const Block& block, const Problem& problem, const int32_t* plan,
                             bool backward, void* memory) {
  const SafePlan safe = SafePlan::read(plan, problem);
  if (!safe.fits || safe.plan.num_graphs == 0) return;
  const Schedule<T> s = Schedule<T>::at(memory, problem);
  const int64_t N = problem.num_nodes;
  const int messages = int(problem.shape.messages), rows = backward ? 1 : messages;
  const int lane = block.thread() % kWarp;
  constexpr int kWarps = kThreads / kWarp;
  for (int64_t i = int64_t(block.index()) * kWarps + block.thread() / kWarp; i < 2 * N;
       i += int64_t(block.count()) * kWarps) {
    const int direction = i < N ? 0 : 1;
    const Place place = Place::find(safe, direction, i - direction * N);
    const EdgeList list = backward ? safe.scatter(direction) : safe.gather(direction);
    const int32_t* const level = s.level + direction * N + place.first;
    Edge<T>* const edge = s.edge + direction * s.most_edges;
    SafePlan::Range edges{0, 0};
    if (place.n > 0) edges = safe.edges(list, place.first + place.node);
    const int64_t split = place.n > 0 ? list.split[place.first + place.node] : 0;
    // Without a second perceptron virtual edges carry nothing.
    const int begin = int(edges.begin);
    const int end = int(messages > 1 || split > edges.end ? edges.end
                        : split > edges.begin             ? split
                                                          : edges.begin);
    int early = begin, late = end;  // where the next ones go: early ones up, late ones down
    for (int from = begin; from < end; from += kWarp) {
      const int e = from + lane;
      Edge<T> found{0, T(0)};
      bool is_late = false;
      if (e < end) {
        const int32_t u = list.node[e], distance = list.distance[e];
        if (uint64_t(int64_t(u)) < uint64_t(place.n)) {
          const int64_t apart = level[u] - place.level;
          is_late = apart == 1 || apart == -1;
          const bool far = e >= split;
          found.row = u * rows + (rows > 1 && far ? 1 : 0);
          found.weight = far ? T(1) / T(distance) : T(1);
        }
      }
      const unsigned is_there = end - from < kWarp ? (1u << (end - from)) - 1 : ~0u;
      const unsigned late_ones = block.ballot(is_late) & is_there;
      const unsigned early_ones = is_there & ~late_ones, before = (1u << lane) - 1;
      if (e < end) {
        edge[is_late ? late - 1 - bits_of(late_ones & before)
                     : early + bits_of(early_ones & before)] = found;
      }
      early += bits_of(early_ones);
      late -= bits_of(late_ones);
    }
    if (lane == 0) s.visit[i] = Visit{int32_t(place.node), begin, early, end};
  }
}

}  // namespace ghn::cuda
