// The gated GNN on CPU, without Python: against a node-by-node loop, against finite differences,
// and with plans that were tampered with, which the sanitizers watch.
#include <cmath>

#include "gated_gnn_cases.h"

namespace {

using namespace ghn::cases;
using namespace ghn::tests;

void test_values_and_gradients(bool virtual_edges) {
  Case a = make_case({7, 1, 12, 0, 5}, 12, 6, virtual_edges);
  const at::Tensor plan = ghn::gated_gnn_plan_cpu(a.edges, a.offsets);
  auto [out, saved] = ghn::gated_gnn_forward_cpu(a.x, plan, a.weights, 2, true);
  check(largest(out - loop(a, 2)) < 1e-12, "values equal the loop over the nodes");
  const auto without = std::get<0>(ghn::gated_gnn_forward_cpu(a.x, plan, a.weights, 2, false));
  check(at::equal(out, without), "the same bits without a record");
  const Case narrow = a.to(at::kFloat);
  const at::Tensor single =
      std::get<0>(ghn::gated_gnn_forward_cpu(narrow.x, plan, narrow.weights, 2, false));
  check(largest(single.to(at::kDouble) - out) < 2e-5, "single precision is near double");

  const at::Tensor probe = at::randn_like(out);
  auto [grad_x, grads] = ghn::gated_gnn_backward_cpu(probe, a.x, plan, a.weights, saved, 2);
  std::vector<at::Tensor> inputs = a.weights, found = grads;
  inputs.push_back(a.x), found.push_back(grad_x);
  double worst = 0;
  for (size_t i = 0; i < inputs.size(); ++i) {
    // Along one random direction, by central differences.
    const at::Tensor direction = at::randn_like(inputs[i]), before = inputs[i].clone();
    double value[2];
    for (int side = 0; side < 2; ++side) {
      inputs[i].copy_(before + (side ? -1e-6 : 1e-6) * direction);
      const at::Tensor moved =
          std::get<0>(ghn::gated_gnn_forward_cpu(a.x, plan, a.weights, 2, false));
      value[side] = (moved * probe).sum().item<double>();
    }
    inputs[i].copy_(before);
    const double slope = (value[0] - value[1]) / 2e-6;
    const double error = std::abs(slope - (found[i] * direction).sum().item<double>());
    worst = std::max(worst, error / (1 + std::abs(slope)));
  }
  check(worst < 1e-6, "gradients equal finite differences");
}

void test_wild_plans() {
  Case a = make_case({6, 4}, 5, 3, true);
  const at::Tensor plan = ghn::gated_gnn_plan_cpu(a.edges, a.offsets);
  int64_t caught = 0, changed = 0;
  const int32_t values[] = {-1, 1, 7, 10000, 2147483647, -2147483647 - 1};
  for (int64_t i = 0; i < plan.numel(); ++i) {
    for (const int32_t value : values) {
      at::Tensor wild = plan.clone();
      wild[i] = value;
      changed += !at::equal(wild, plan);
      caught += refused([&] {
        auto [out, saved] = ghn::gated_gnn_forward_cpu(a.x, wild, a.weights, 1, true);
        ghn::gated_gnn_backward_cpu(out, a.x, wild, a.weights, saved, 1);
      });
    }
  }
  // What is not refused happens to be the number that was there.
  check(caught == changed, "wild plans are refused");
}

}  // namespace

int main() {
  at::manual_seed(0);
  test_values_and_gradients(true);
  test_values_and_gradients(false);
  test_wild_plans();
  return exit_status();
}
