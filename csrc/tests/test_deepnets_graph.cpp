// Graphs from packed records on CPU, without Python: random networks against the ops that they
// stand in for, and damaged records, which the sanitizers watch.
#include <ATen/ATen.h>

#include <algorithm>
#include <cstdio>
#include <random>
#include <tuple>
#include <vector>

#include "checks.h"
#include "ops.h"

namespace ghn {
inline constexpr tests::Op<at::Tensor(const at::Tensor&, const at::Tensor&, int64_t,
                                      at::IntArrayRef, bool)>
    deepnets_sizes_cpu{"ghn_fast::deepnets_sizes"};
inline constexpr tests::Op<std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>(
    const at::Tensor&, int64_t, int64_t, int64_t, int64_t)>
    deepnets_graph_cpu{"ghn_fast::deepnets_graph"};
inline constexpr tests::Op<at::Tensor(at::TensorList)> gated_gnn_join_cpu{
    "ghn_fast::gated_gnn_join"};
inline constexpr tests::Op<at::Tensor(const at::Tensor&, const at::Tensor&)> gated_gnn_plan_cpu{
    "ghn_fast::gated_gnn_plan"};
inline constexpr tests::Op<at::Tensor(const at::Tensor&)> gated_gnn_plan_edges_cpu{
    "ghn_fast::gated_gnn_plan_edges"};
inline constexpr tests::Op<at::Tensor(const at::Tensor&, int64_t, int64_t)> shortest_distances_cpu{
    "ghn_fast::shortest_distances"};
}  // namespace ghn

namespace {

using namespace ghn::tests;
using Bytes = std::vector<uint8_t>;

at::Tensor tensor(const Bytes& bytes) {
  at::Tensor result = at::empty({int64_t(bytes.size())}, at::kByte);
  std::copy(bytes.begin(), bytes.end(), result.data_ptr<uint8_t>());
  return result;
}

Bytes random_record(std::mt19937& random) {
  const auto below = [&](int bound) { return uint8_t(random() % bound); };
  const uint8_t steps[2] = {uint8_t(1 + below(5)), uint8_t(1 + below(5))};
  Bytes record = {steps[0], steps[1], steps[0], steps[1], uint8_t(1 + below(12)), 0,
                  uint8_t(1 + below(2)), 0, uint8_t(8 + 2 * below(40)), 0, 0, 0, 64, 0, 0, 0,
                  uint8_t(1 + below(3)), 0, 3, 0, below(32), 0, 0, 0};
  // Cells of several states, and wider ones, need convolutions on their inputs.
  if (std::max(steps[0], steps[1]) > 1 || record[6] > 1) record[20] |= 8;
  for (const uint8_t cell : steps) {
    for (int i = 0; i < 2 * cell; ++i) {
      record.push_back(below(15));
      record.push_back(below(2 + i / 2));
    }
  }
  for (const uint8_t cell : steps) {
    for (uint8_t s = 0; s < cell; ++s) record.push_back(2 + s);
  }
  return record;
}

// Plans of random networks; those that no path leads through are refused and left out.
std::vector<at::Tensor> random_plans(int count, unsigned seed, int64_t cutoff) {
  std::mt19937 random(seed);
  std::vector<at::Tensor> plans;
  while (int(plans.size()) < count) {
    const at::Tensor record = tensor(random_record(random));
    const int64_t size = int64_t(8) << random() % 5;
    refused([&] {
      plans.push_back(std::get<3>(ghn::deepnets_graph_cpu(record, 10, size, 32, cutoff)));
    });
  }
  return plans;
}

void test_plans() {
  bool all = true;
  for (const int64_t cutoff : {1, 2, 50, 1 << 20}) {
    for (const at::Tensor& plan : random_plans(25, unsigned(cutoff), cutoff)) {
      const at::Tensor edges = ghn::gated_gnn_plan_edges_cpu(plan);
      const int64_t nodes = plan[2].item<int64_t>();
      const at::Tensor hops = edges.index({edges.select(1, 2) == 1}).slice(1, 0, 2);
      const at::Tensor expected = ghn::shortest_distances_cpu(hops.contiguous(), nodes, cutoff);
      all = all && at::equal(edges, expected);
      const at::Tensor offsets = at::tensor({int64_t(0), nodes});
      all = all && at::equal(plan, ghn::gated_gnn_plan_cpu(expected, offsets));
    }
  }
  check(all, "distances and schedules are those of the ops");
}

void test_join() {
  const std::vector<at::Tensor> plans = random_plans(9, 7, 50);
  std::vector<at::Tensor> edges;
  std::vector<int64_t> offsets = {0};
  for (const at::Tensor& plan : plans) {
    const int64_t first = offsets.back();
    edges.push_back(ghn::gated_gnn_plan_edges_cpu(plan) + at::tensor({first, first, int64_t(0)}));
    offsets.push_back(first + plan[2].item<int64_t>());
  }
  const at::Tensor whole = ghn::gated_gnn_plan_cpu(at::cat(edges), at::tensor(offsets));
  check(at::equal(ghn::gated_gnn_join_cpu(plans), whole), "plans are joined");
}

void test_damaged_records() {
  std::mt19937 random(3);
  int accepted = 0, rejected = 0;
  for (int i = 0; i < 2000; ++i) {
    Bytes record = random_record(random);
    for (int change = 0; change <= i % 3; ++change) {
      record[random() % record.size()] = uint8_t(random());
    }
    // So many cells only take time.
    record[5] = 0;
    if (i % 5 == 0) record.resize(random() % record.size());
    const at::Tensor bytes = tensor(record), ends = at::tensor({int64_t(record.size())});
    const bool failed = refused([&] {
      ghn::deepnets_sizes_cpu(bytes, ends, 10, {32, 224}, false);
      ghn::deepnets_graph_cpu(bytes, 10, 32, 32, 50);
    });
    ++(failed ? rejected : accepted);
  }
  std::printf("%d accepted, %d rejected\n", accepted, rejected);
  check(accepted > 100 && rejected > 100, "damaged records are refused, or networks");
}

}  // namespace

int main() {
  test_plans();
  test_join();
  test_damaged_records();
  return exit_status();
}
