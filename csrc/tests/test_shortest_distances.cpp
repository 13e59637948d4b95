// Distances on CPU, without Python: against a breadth-first search, at the edges of tiles and of
// number types, and with wrong input, which the sanitizers watch.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <limits>
#include <random>
#include <utility>
#include <vector>

#include "checks.h"
#include "ops.h"

namespace ghn {
inline constexpr tests::Op<at::Tensor(const at::Tensor&, int64_t, int64_t)> shortest_distances_cpu{
    "ghn_fast::shortest_distances"};
}  // namespace ghn

namespace {

using namespace ghn::tests;
using Pairs = std::vector<std::pair<int64_t, int64_t>>;

at::Tensor table(const Pairs& pairs) {
  at::Tensor edges = at::empty({int64_t(pairs.size()), 2}, at::kLong);
  for (size_t e = 0; e < pairs.size(); ++e) {
    edges[e][0] = pairs[e].first;
    edges[e][1] = pairs[e].second;
  }
  return edges;
}

Pairs random_graph(int64_t nodes, int64_t shortcuts, unsigned seed) {
  std::mt19937 random(seed);
  Pairs pairs;
  // Every seventh node starts a part of its own.
  for (int64_t v = 1; v < nodes; ++v) {
    if (v % 7 != 0 || seed % 2 == 0) pairs.push_back({v - 1, v});
  }
  for (int64_t i = 0; i < shortcuts && nodes > 1; ++i) {
    const int64_t v = 1 + random() % (nodes - 1);
    pairs.push_back({random() % v, v});
  }
  return pairs;
}

at::Tensor search(const Pairs& pairs, int64_t nodes, int64_t cutoff) {
  std::vector<std::vector<int64_t>> next(nodes);
  for (const auto& [from, to] : pairs) next[from].push_back(to);
  std::vector<int64_t> rows;
  for (int64_t start = 0; start < nodes; ++start) {
    std::vector<int64_t> distance(nodes, -1), queue = {start};
    distance[start] = 0;
    for (size_t i = 0; i < queue.size(); ++i) {
      for (const int64_t v : next[queue[i]]) {
        if (distance[v] >= 0) continue;
        distance[v] = distance[queue[i]] + 1;
        queue.push_back(v);
      }
    }
    for (int64_t v = 0; v < nodes; ++v) {
      if (distance[v] > 0 && distance[v] <= cutoff) rows.insert(rows.end(), {start, v, distance[v]});
    }
  }
  return at::tensor(rows, at::kLong).view({-1, 3});
}

void test_distances() {
  bool equal = true;
  for (const int64_t nodes : {0, 1, 2, 64, 127, 128, 129, 256, 257, 400}) {
    for (const int64_t cutoff : {1, 2, 50, 253, 254, 1000}) {
      const Pairs pairs = random_graph(nodes, nodes / 4, unsigned(nodes + cutoff));
      const at::Tensor found = ghn::shortest_distances_cpu(table(pairs), nodes, cutoff);
      equal = equal && at::equal(found, search(pairs, nodes, cutoff));
    }
  }
  check(equal, "distances equal a breadth-first search");
}

void test_threads() {
  const int64_t nodes = 3500;
  const Pairs pairs = random_graph(nodes, 700, 2);
  const at::Tensor edges = table(pairs), expected = search(pairs, nodes, 50);
  bool equal = true;
  for (const int threads : {1, 2, 3}) {
    at::set_num_threads(threads);
    equal = equal && at::equal(ghn::shortest_distances_cpu(edges, nodes, 50), expected);
  }
  check(equal, "the same on any number of threads");
}

void test_large() {
  // Rows are computed twice, because they are not kept; the chain is longer than two bytes count.
  const int64_t nodes = 34000;
  const at::Tensor from = at::arange(nodes - 1, at::kLong);
  const at::Tensor edges = at::stack({from, from + 1}, 1);
  const at::Tensor rows = ghn::shortest_distances_cpu(edges, nodes, 3);
  check(rows.size(0) == 3 * nodes - 6 && rows.select(1, 2).eq(rows.select(1, 1) - rows.select(1, 0)).all().item<bool>(),
        "a chain too long for its rows to be kept");
  const at::Tensor star = at::stack({at::zeros_like(from), from + 1}, 1);
  const at::Tensor spokes = ghn::shortest_distances_cpu(star, nodes, nodes);
  check(at::equal(spokes.slice(1, 0, 2), star), "a cutoff that needs four bytes");
  const int64_t most = std::numeric_limits<int32_t>::max();
  const at::Tensor far = ghn::shortest_distances_cpu(table({{3, most - 1}, {0, 3}}), most, 9);
  check(far.size(0) == 3 && far[1][2].item<int64_t>() == 2, "isolated nodes cost nothing");
}

void test_wrong_input() {
  const at::Tensor edges = table({{0, 1}, {1, 2}});
  const int64_t wild[] = {-1, 3, int64_t(1) << 40, std::numeric_limits<int64_t>::max(),
                          std::numeric_limits<int64_t>::min()};
  bool all = true;
  for (int64_t i = 0; i < 4; ++i) {
    for (const int64_t value : wild) {
      at::Tensor wrong = edges.clone();
      wrong.view({-1})[i] = value;
      all = all && refused([&] { ghn::shortest_distances_cpu(wrong, 3, 5); });
    }
  }
  all = all && refused([&] { ghn::shortest_distances_cpu(edges.flip(1), 3, 5); });
  all = all && refused([&] { ghn::shortest_distances_cpu(edges, -1, 5); });
  all = all && refused([&] { ghn::shortest_distances_cpu(edges, int64_t(1) << 31, 5); });
  all = all && refused([&] { ghn::shortest_distances_cpu(edges, 3, 0); });
  all = all && refused([&] { ghn::shortest_distances_cpu(edges.to(at::kFloat), 3, 5); });
  all = all && refused([&] { ghn::shortest_distances_cpu(edges.view({-1}), 3, 5); });
  check(all, "wrong edges are refused");
}

}  // namespace

int main() {
  test_distances();
  test_threads();
  test_large();
  test_wrong_input();
  return exit_status();
}
