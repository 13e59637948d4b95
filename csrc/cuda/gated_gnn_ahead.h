// What the kernels of the gated GNN share that sum edges ahead: for rows of 32 elements and 32
// elements of hidden layers.
//
// A sweep is a walk over levels, and takes as long as the longest way through one of them times
// their number. So on that way lies as little as can be: a warp updates a node alone, with its
// weights in registers and without a barrier of the block. Meanwhile other warps sum the early
// edges (gated_gnn_schedule.h) of the nodes that come next, and one of them does the product with
// the state, which no level waits for. What remains is the late edges, three products that follow
// each other, and one barrier per level.
//
// A step is at most four nodes of a level, a warp for each; the steps are found by the warp of the
// states. Where a level has more, those after the
// first four find all their edges summed; so do the nodes of the level behind it, after a step in
// which only edges are summed. A block then does not wait for one warp that has many late edges.
#pragma once

#include "gated_gnn_schedule.h"

namespace ghn::cuda {

constexpr int kWide = 32;      // elements of a row, and of the hidden layers of a node
constexpr int kUpdaters = 4;   // nodes of a step, and warps that may update one
constexpr int kWorkers = 7;    // warps that update or sum; one more has the product with the state
constexpr int kRowsAtOnce = 4; // rows that a warp reads at a time, four elements a thread
static_assert((kWorkers + 1) * kWarp == kThreads && kWide == kWarp, "a thread has an element");

// Whether the kernels of this file are for these weights.
GHN_INLINE bool runs_ahead(const Record& r) {
  return r.c == kWide && r.hidden == kWide && r.h[0] * r.messages == kWide;
}

// Shared memory, in elements.
template <class T>
struct AheadFootprint {
  int64_t fixed, node;

  // With the rows in shared memory, or `far`.
  static GHN_INLINE AheadFootprint of(const Record& r, bool backward, bool far) {
    // Per node: a row (two in forward, if there are two messages), a visit, the bound of a level.
    const int64_t rows = far ? 0 : backward ? 1 : r.messages, sums = backward ? r.messages : 1;
    const int64_t table = (int64_t(sizeof(Visit)) + 4) / int64_t(sizeof(T));
    const int64_t partial = 2 * kUpdaters * kWorkers * sums * kWide;
    const int64_t held = 2 * kUpdaters * 5 * kWide, swap = kUpdaters * 4 * kWide;
    return {partial + held + swap + 10 * kWide + 16, rows * kWide + table + 1};
  }

  // The largest graph for so many bytes.
  GHN_INLINE int64_t nodes(int64_t bytes) const {
    const int64_t elements = bytes / int64_t(sizeof(T)) - fixed;
    return elements < 0 ? 0 : elements / node;
  }

  GHN_INLINE int64_t bytes(int64_t nodes) const {
    return (fixed + node * nodes) * int64_t(sizeof(T));
  }
};

// Nodes [begin, begin + count) in the order of a sweep, at most kUpdaters of one level.
struct alignas(16) Step {
  enum Kind : int32_t {
    early,     // only the early edges of its nodes are summed ahead
    complete,  // all of them are
    last       // there is no such step
  };
  int32_t begin, count;
  int32_t parts;  // in which the edges of each node are summed
  Kind kind;

  // In how many parts if so many warps share the edges of so many nodes. Without a division.
  static GHN_DEVICE int parts_of(int workers, int count) {
    const int of_three = workers >= 6 ? 2 : 1;
    return count < 2 ? workers : count == 2 ? workers / 2 : count == 3 ? of_three : 1;
  }
};
static_assert(kUpdaters == 4 && kWorkers < 9, "parts_of knows them");

// The steps of a sweep. `level` are the places at which its levels begin, and the end.
class Steps {
 public:
  GHN_DEVICE Steps(const int32_t* level, int levels, bool backward)
      : level_(backward ? level + levels - 1 : level),
        by_(backward ? -1 : 1),
        left_(levels),
        at_(0),
        end_(0),
        before_(0),
        wide_(false),
        apart_(true) {}

  GHN_DEVICE Step next() {
    const int workers = kWorkers - before_;
    Step::Kind kind = Step::complete;
    before_ = 0;
    if (at_ >= end_) {
      bool skipped = false;  // levels without nodes: what is late is no longer in the step before
      while (left_ > 0 && level_[0] >= level_[1]) {
        level_ += by_, --left_;
        skipped = true;
      }
      if (left_ <= 0) return Step{0, 0, 1, Step::last};
      if (!apart_ && (wide_ || skipped)) {
        apart_ = true;
        return Step{0, 0, 1, Step::complete};
      }
      if (!apart_) kind = Step::early;
      apart_ = false;
      at_ = level_[0], end_ = level_[1];
      wide_ = end_ - at_ > kUpdaters;
      level_ += by_, --left_;
    }
    before_ = end_ - at_ < kUpdaters ? end_ - at_ : kUpdaters;
    at_ += before_;
    return Step{at_ - before_, before_, Step::parts_of(workers, before_), kind};
  }

 private:
  const int32_t* level_;
  int by_, left_, at_, end_, before_;
  bool wide_, apart_;  // the level before; whether a step without nodes is between it and the next
};

// Rows of the nodes of a graph, which edges are summed over.
template <class T>
struct AheadRows {
  const T* at;
  unsigned last;  // row

  // Stays inside the rows whatever an edge says.
  GHN_DEVICE unsigned within(int32_t row) const {
    return unsigned(row) < last ? unsigned(row) : last;
  }
  GHN_DEVICE T element(int32_t row, int j) const { return at[within(row) * kWide + j]; }
  GHN_DEVICE Quad<T> quad(int32_t row, int q) const {
    return reinterpret_cast<const Quad<T>*>(at)[within(row) * (kWide / 4) + q];
  }
};

// The late edges of a node. The first ones are read before the rows are there.
template <class T>
struct LateEdges {
  static constexpr int kFirst = 4;
  Edge<T> first[kFirst];
  int begin, end;

  // Of a node of a step if it is `there`. No branch: a warp would wait at its end.
  static GHN_DEVICE LateEdges read(const Edge<T>* edges, const Visit& visit, const Step& step,
                                   bool there) {
    LateEdges late;
    late.begin = visit.late;
    late.end = there && step.kind == Step::early ? visit.end : visit.late;
    GHN_UNROLL
    for (int k = 0; k < kFirst; ++k) {
      if (late.begin + k < late.end) late.first[k] = edges[late.begin + k];
    }
    return late;
  }

  // Call add(weight, element of the row).
  template <class Add>
  GHN_DEVICE void each(const Edge<T>* edges, const AheadRows<T>& rows, int lane,
                       const Add& add) const {
    GHN_UNROLL
    for (int k = 0; k < kFirst; ++k) {
      if (begin + k < end) add(first[k].weight, rows.element(first[k].row, lane));
    }
    for (int e = begin + kFirst; e < end; ++e) {
      add(edges[e].weight, rows.element(edges[e].row, lane));
    }
  }
};

// Sums over edges, a share each for warps of a block. kSums 2 keeps apart those at distance 1, of
// which the weight is 1: sum 0 is over all edges, sum 1 over them. kBatch times kRowsAtOnce edges
// are under way together.
template <class T, int kSums, int kBatch = 8>
struct EdgeShare {

  // The sums over the edges in [begin, end) from every stride-th group of kRowsAtOnce on, to `to`,
  // (kSums, kWide).
  template <class Block>
  static GHN_DEVICE void sum(const Block& block, const Edge<T>* edges, const AheadRows<T>& rows,
                             int begin, int end, int stride, T* to) {
    const int lane = block.thread() % kWarp, group = lane / 8, quad = lane % 8;
    Quad<T> sums[kSums];
    GHN_UNROLL
    for (int s = 0; s < kSums; ++s) sums[s] = Quad<T>{{T(0), T(0), T(0), T(0)}};
    for (int from = begin; from < end; from += stride * kBatch) {
      const Edge<T>* const first = edges + from;
      Edge<T> edge[kBatch];
      GHN_UNROLL
      for (int k = 0; k < kBatch; ++k) {
        const int place = group + stride * k;
        const bool there = place < end - from;
        edge[k] = first[there ? place : 0];
        if (!there) edge[k].weight = T(0);
      }
      Quad<T> value[kBatch];
      GHN_UNROLL
      for (int k = 0; k < kBatch; ++k) value[k] = rows.quad(edge[k].row, quad);
      GHN_UNROLL
      for (int k = 0; k < kBatch; ++k) {
        GHN_UNROLL
        for (int i = 0; i < 4; ++i) {
          sums[0].at[i] += edge[k].weight * value[k].at[i];
          if (kSums == 2) sums[1].at[i] += edge[k].weight == T(1) ? value[k].at[i] : T(0);
        }
      }
    }
    GHN_UNROLL
    for (int mask = 8; mask < kWarp; mask *= 2) {
      GHN_UNROLL
      for (int s = 0; s < kSums; ++s) {
        GHN_UNROLL
        for (int i = 0; i < 4; ++i) sums[s].at[i] += block.shuffle_xor(sums[s].at[i], mask);
      }
    }
    if (group == 0) reinterpret_cast<Quad<T>*>(to)[quad] = sums[0];
    if (kSums == 2 && group == 1) reinterpret_cast<Quad<T>*>(to + kWide)[quad] = sums[kSums - 1];
  }

  // What worker number `worker` of so many has of the nodes of a step. `partial` is (kUpdaters,
  // kWorkers, kSums, kWide).
  template <class Block>
  static GHN_DEVICE void step(const Block& block, const Edge<T>* edges, const AheadRows<T>& rows,
                              const Visit* visits, const Step& step, int worker, int workers,
                              T* partial) {
    const int parts = step.parts;
    for (int task = worker; task < step.count * parts; task += workers) {
      const int k = (task >= parts) + (task >= 2 * parts) + (task >= 3 * parts);
      const int part = task - k * parts;
      const Visit visit = visits[step.begin + k];
      const int end = step.kind == Step::early ? visit.late : visit.end;
      sum(block, edges, rows, visit.begin + part * kRowsAtOnce, end, parts * kRowsAtOnce,
          partial + (k * kWorkers + part) * kSums * kWide);
    }
  }

  // Sum number `which` of the k-th node of a step, one element of it: pairs of parts, then pairs of
  // those.
  static GHN_DEVICE T total(const T* partial, const Step& step, int k, int which, int lane) {
    T sum[kWorkers + 1];
    GHN_UNROLL
    for (int part = 0; part <= kWorkers; ++part) {
      const T* const at = partial + ((k * kWorkers + part) * kSums + which) * kWide + lane;
      sum[part] = part < kWorkers && part < step.parts ? *at : T(0);
    }
    GHN_UNROLL
    for (int half = (kWorkers + 1) / 2; half > 0; half /= 2) {
      GHN_UNROLL
      for (int part = 0; part < half; ++part) sum[part] += sum[part + half];
    }
    return sum[0];
  }
};

// start + sum_i weight[kFirst + i] x[i] over kCount elements, in kChains sums that are added up at
// the end: an addition waits for the one before. So many short sums have fewer additions behind
// each other than one long one, and round no worse.
template <int kChains, int kFirst, int kCount, class T>
GHN_DEVICE T product_in_chains(const T (&weight)[kWide], const T* x, T start) {
  T sum[kChains];
  GHN_UNROLL
  for (int k = 0; k < kChains; ++k) sum[k] = k == 0 ? start : T(0);
  GHN_UNROLL
  for (int i = 0; i < kCount; i += 4) {
    const Quad<T> value = *reinterpret_cast<const Quad<T>*>(x + i);
    GHN_UNROLL
    for (int k = 0; k < 4; ++k) sum[k % kChains] += weight[kFirst + i + k] * value.at[k];
  }
  GHN_UNROLL
  for (int half = kChains / 2; half > 0; half /= 2) {
    GHN_UNROLL
    for (int k = 0; k < half; ++k) sum[k] += sum[k + half];
  }
  return sum[0];
}

// Likewise for the three gates; what they multiply lies kStep elements apart. The first one has more
// chains: what follows waits for it, and the others fill that time.
template <int kStep, class T>
GHN_DEVICE void products_of_gates(const T (&weight)[3][kWide], const T* x, T (&sum)[3]) {
  sum[0] = product_in_chains<4, 0, kWide>(weight[0], x, sum[0]);
  sum[1] = product_in_chains<2, 0, kWide>(weight[1], x + kStep, sum[1]);
  sum[2] = product_in_chains<2, 0, kWide>(weight[2], x + 2 * kStep, sum[2]);
}

// What a thread has of the weights: of its element, the rows or columns that are multiplied by what
// the whole warp has. The warp of the states has W_hh in `gate` and nothing else.
template <class T>
struct ThreadWeights {
  T gate[3][kWide];  // by r z n in forward, by n r z or r z n in backward
  T first[kWide], second[kWide];
};

// Visits, levels and the steps that come next of a sweep, and the rows that edges are summed over:
// the rest of the shared memory.
template <class T>
struct SweepTable {
  Step* step;  // (2), they take turns
  Visit* visit;
  T* row;  // of so many elements per node
  int32_t* level;
  int levels;

  // Rows come late: before them addresses are known when this is compiled, and take no registers.
  GHN_DEVICE SweepTable(Arena<T>& arena, int most_nodes, int row_width)
      : step(reinterpret_cast<Step*>(arena.need(2 * sizeof(Step) / sizeof(T)))),
        visit(reinterpret_cast<Visit*>(
            arena.need(most_nodes * int64_t(sizeof(Visit)) / int64_t(sizeof(T))))),
        row(arena.need(int64_t(most_nodes) * row_width)),
        level(reinterpret_cast<int32_t*>(arena.next)) {}

  template <class Block>
  GHN_DEVICE void fill(const Block& block, const SafePlan& safe, const SweepOrder& order,
                       int64_t graph, const SafePlan::Range& nodes, const Schedule<T>& schedule,
                       const Visit* visits) {
    const SafePlan::Range range = safe.levels(order, graph);
    const int n = int(nodes.end - nodes.begin);
    // A level has a node, or there is no plan for it.
    levels = range.end - range.begin > n ? n : int(range.end - range.begin);
    const int most = int(schedule.most_edges);
    for (int i = block.thread(); i < n; i += kThreads) {
      Visit v = visits[nodes.begin + i];
      v.node = unsigned(v.node) < unsigned(n) ? v.node : 0;
      v.end = unsigned(v.end) <= unsigned(most) ? v.end : 0;
      v.late = unsigned(v.late) <= unsigned(v.end) ? v.late : v.end;
      v.begin = unsigned(v.begin) <= unsigned(v.late) ? v.begin : v.late;
      visit[i] = v;
    }
    for (int i = block.thread(); i <= levels; i += kThreads) {
      const int64_t at = order.level[range.begin + i] - nodes.begin;
      level[i] = int32_t(at < 0 ? 0 : at > n ? n : at);
    }
  }

  // Tell all warps the step after the next one, and have its edges on their way into the cache; by
  // the warp of the states.
  template <class Block>
  GHN_DEVICE void publish(const Block& block, const Step& found, int turn,
                          const Edge<T>* edges) const {
    constexpr int kLine = 128 / int(sizeof(Edge<T>));
    const int lane = block.thread() % kWarp;
    if (lane == 0) step[turn] = found;
    for (int k = 0; k < found.count; ++k) {
      const Visit v = visit[found.begin + k];
      const int e = v.begin + lane * kLine;
      if (e < v.end) block.touch(edges + e);
    }
  }
};

// As Functions of simd.h, where the GPU has instructions for it: a node waits for two of them one
// after the other. PTX has ex2.approx off by at most 2^-22 of its value, besides what its argument
// was rounded by, and rcp.approx by one unit in the last place: of a gate 1e-6 at x = -6, where it
// is 0.0025, and less towards 0. Not measured on a GPU.
template <class T>
struct GateFunctions : Functions<T, 1> {};

#if defined(__CUDA_ARCH__)
template <>
struct GateFunctions<float> : Functions<float, 1> {
  // Infinity and zero, which far x lead to, give the limits; NaN stays NaN.
  static __device__ __forceinline__ float sigmoid(float x) {
    return inverse(1.0f + exp2_of(x * -kLog2E));
  }
  static __device__ __forceinline__ float tanh(float x) {
    // Both are wanted at the same time: a branch would take the time of one after the other.
    const float large = known(1.0f - 2.0f * inverse(1.0f + exp2_of(x * (2.0f * kLog2E))));
    const float small = known(tanh_near_zero(x));
    return fabsf(x) < kNearZero ? small : large;
  }

 private:
  static constexpr float kLog2E = 1.44269504088896341f;

  static __device__ __forceinline__ float exp2_of(float x) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
  }
  static __device__ __forceinline__ float inverse(float x) {
    float result;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
  }
  static __device__ __forceinline__ float known(float x) {
    asm("" : "+f"(x));
    return x;
  }
};
#endif

}  // namespace ghn::cuda
