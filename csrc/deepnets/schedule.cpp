// Distances by one pass over the nodes per direction: the row of a node is the least of its
// neighbours' rows, plus one. The edges of a node within the cutoff are then what its row lists.
#include "schedule.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <type_traits>

#include "../common/checks.h"
#include "../common/per_thread.h"
#include "../plan/gated_gnn_plan_check.h"

namespace ghn::deepnets {
namespace {

// Bytes where the cutoff allows: half the memory, twice as many in a vector. SSE2, which every x86-64
// has, knows the lesser of two unsigned bytes and of two signed 16-bit numbers.
template <class Distance>
constexpr Distance kFar = std::numeric_limits<Distance>::max() - 1;

// Neighbours in one direction, ascending.
struct Neighbours {
  const int32_t *ptr, *node;
};

struct Workspace {
  std::vector<int32_t> from, ptr, levels, place;
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

constexpr int32_t kBlock = 8;
using Numbers = int32_t __attribute__((vector_size(4 * kBlock)));
template <class Distance>
struct BlockOf;
template <>
struct BlockOf<uint8_t> {
  using Type = uint8_t __attribute__((vector_size(kBlock)));
};
template <>
struct BlockOf<int16_t> {
  using Type = uint16_t __attribute__((vector_size(2 * kBlock)));
};

// Distances from each node along the edges (to later nodes) or against them (to earlier ones); in
// the row of a node only these columns are filled.
template <class Distance>
struct Rows {
  std::vector<Distance> values;
  int32_t n = 0;
  bool along = true;

  const Distance* row(int32_t u) const { return values.data() + size_t(u) * n; }
  int32_t first(int32_t u) const { return along ? u + 1 : 0; }
  int32_t last(int32_t u) const { return along ? n : u; }

  void fill(const Neighbours& next, int32_t nodes, bool direction) {
    n = nodes, along = direction;
    if (values.size() < size_t(n) * n) values.resize(size_t(n) * n);
    for (int32_t i = 0; i < n; ++i) {
      const int32_t u = along ? n - 1 - i : i;
      Distance* __restrict mine = values.data() + size_t(u) * n;
      std::fill(mine + first(u), mine + last(u), kFar<Distance>);
      for (int32_t e = next.ptr[u]; e < next.ptr[u + 1]; ++e) {
        const int32_t v = next.node[e];
        const Distance* __restrict other = row(v);
        // Bytes may alias anything, so that bounds in memory would be read again each time.
        const int32_t start = first(v), stop = last(v);
        for (int32_t w = start; w < stop; ++w) {
          mine[w] = std::min<Distance>(mine[w], Distance(other[w] + 1));
        }
        mine[v] = 1;
      }
    }
  }

  // Number of pairs within the cutoff, and the largest distance among them.
  int64_t count(Distance cutoff, int32_t& largest) const {
    using Unsigned = std::make_unsigned_t<Distance>;
    using Block = typename BlockOf<Distance>::Type;
    int64_t total = 0;
    Unsigned most = 0;
    for (int32_t u = 0; u < n; ++u) {
      const Distance* mine = row(u);
      int32_t v = first(u);
      const int32_t stop = last(u);
      while (v + kBlock <= stop) {
        // Sums of so few fit into a lane.
        const int32_t end = std::min(stop, v + 64 * kBlock);
        Block sums = {}, greatest = {};
        for (; v + kBlock <= end; v += kBlock) {
          Block block;
          std::memcpy(&block, mine + v, sizeof block);
          const Block inside = (Block)(block <= Unsigned(cutoff)), kept = block & inside;
          sums -= inside;
          greatest = kept > greatest ? kept : greatest;
        }
        for (int32_t i = 0; i < kBlock; ++i) {
          total += sums[i];
          most = std::max(most, greatest[i]);
        }
      }
      for (; v < stop; ++v) {
        if (mine[v] > cutoff) continue;
        ++total;
        most = std::max(most, Unsigned(mine[v]));
      }
    }
    largest = most;
    return total;
  }
};

// Columns from `first` to `last` at distances from 2 to 2 + range, to `at` and what follows.
template <class Distance>
int32_t append_far(const Distance* row, int32_t first, int32_t last, Distance range, int32_t* node,
                   int32_t* distance, int32_t at, int32_t end) {
  using Unsigned = std::make_unsigned_t<Distance>;
  using Block = typename BlockOf<Distance>::Type;
  const Numbers steps = {0, 1, 2, 3, 4, 5, 6, 7};
  int32_t v = first;
  // Nearly all columns are in most rows, so whole blocks are copied. What is written behind the
  // last one of a block is overwritten later.
  for (; v + kBlock <= last && at + kBlock <= end; v += kBlock) {
    Block block;
    std::memcpy(&block, row + v, sizeof block);
    const auto outside = block - Unsigned(2) > Unsigned(range);
    uint64_t words[sizeof block / 8], any = 0;
    std::memcpy(words, &outside, sizeof words);
    for (const uint64_t word : words) any |= word;
    if (any == 0) {
      const Numbers nodes = steps + v, distances = __builtin_convertvector(block, Numbers);
      std::memcpy(node + at, &nodes, sizeof nodes);
      std::memcpy(distance + at, &distances, sizeof distances);
      at += kBlock;
      continue;
    }
    for (int32_t i = 0; i < kBlock; ++i) {
      node[at] = v + i;
      distance[at] = row[v + i];
      at += Unsigned(row[v + i] - 2) <= Unsigned(range);
    }
  }
  for (; v < last; ++v) {
    if (Unsigned(row[v] - 2) > Unsigned(range)) continue;
    node[at] = v;
    distance[at++] = row[v];
  }
  return at;
}

// Lists of one direction: at each node those at distance 1, then the others within the cutoff.
template <class Distance>
void fill_list(const EdgeList& list, const Neighbours& next, const Rows<Distance>& rows, int32_t n,
               Distance cutoff, int32_t edges) {
  auto* ptr = const_cast<int32_t*>(list.ptr);
  auto* split = const_cast<int32_t*>(list.split);
  auto* node = const_cast<int32_t*>(list.node);
  auto* distance = const_cast<int32_t*>(list.distance);
  int32_t at = 0;
  for (int32_t u = 0; u < n; ++u) {
    ptr[u] = at;
    for (int32_t e = next.ptr[u]; e < next.ptr[u + 1]; ++e, ++at) {
      node[at] = next.node[e];
      distance[at] = 1;
    }
    split[u] = at;
    if (cutoff > 1) {
      at = append_far<Distance>(rows.row(u), rows.first(u), rows.last(u), Distance(cutoff - 2),
                                node, distance, at, edges);
    }
  }
  ptr[n] = at;
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

template <class Distance>
Tensor plan_within(const Graph& graph, Distance cutoff) {
  auto& work = per_thread<Workspace>();
  auto& rows = per_thread<std::array<Rows<Distance>, 2>>();
  const int32_t n = graph.nodes();
  const Neighbours out{graph.ptr.data(), graph.to.data()};
  const Neighbours in = reverse(graph, work);
  int64_t edges = graph.to.size();
  int32_t largest = edges > 0;
  if (cutoff > 1) {
    rows[0].fill(out, n, true);
    rows[1].fill(in, n, false);
    edges = rows[0].count(cutoff, largest);
  }
  work.levels.resize(2 * size_t(n));
  int32_t* levels[2] = {work.levels.data(), work.levels.data() + n};
  const int32_t counts[2] = {fill_levels(levels[0], in, n, true),
                             fill_levels(levels[1], out, n, false)};
  const int32_t header[Plan::kHeader] = {Plan::kMagic, 1, n, int32_t(edges), counts[0], counts[1],
                                         largest, 0};
  Tensor packed = empty({Plan::size(header)}, kInt);
  int32_t* data = packed.data_ptr<int32_t>();
  std::copy_n(header, Plan::kHeader, data);
  const Plan plan = Plan::read(data);
  auto* graph_ptr = const_cast<int32_t*>(plan.graph_ptr);
  graph_ptr[0] = 0, graph_ptr[1] = n;
  fill_list(plan.in, in, rows[1], n, cutoff, int32_t(edges));
  fill_list(plan.out, out, rows[0], n, cutoff, int32_t(edges));
  for (int i = 0; i < 2; ++i) fill_order(plan.sweep[i], levels[i], n, work);
  remember_made_plan(packed);
  return packed;
}

}  // namespace

Tensor make_plan(const Graph& graph, int64_t cutoff) {
  const int32_t n = graph.nodes();
  GHN_CHECK(n <= kMostNodes, "records: the graph has ", n, " nodes, needs at most ", kMostNodes);
  // No path is longer than the number of nodes, so that distances always fit.
  const int64_t limit = std::min<int64_t>(cutoff, n);
  if (limit < kFar<uint8_t>) return plan_within<uint8_t>(graph, uint8_t(limit));
  return plan_within<int16_t>(graph, int16_t(limit));
}

}  // namespace ghn::deepnets
