// The gated GNN on CPU, without Python: against a node-by-node loop, against finite differences,
// and with plans that were tampered with, which the sanitizers watch.
#include <ATen/ATen.h>

#include <cmath>
#include <cstdio>
#include <stdexcept>
#include <tuple>
#include <vector>

namespace ghn {
at::Tensor gated_gnn_plan_cpu(const at::Tensor& edges, const at::Tensor& offsets);
std::tuple<at::Tensor, at::Tensor> gated_gnn_forward_cpu(const at::Tensor& x,
                                                         const at::Tensor& plan,
                                                         at::TensorList weights, int64_t steps,
                                                         bool save);
std::tuple<at::Tensor, std::vector<at::Tensor>> gated_gnn_backward_cpu(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& plan, at::TensorList weights,
    const at::Tensor& saved, int64_t steps);
}  // namespace ghn

namespace {

int failures = 0;

void check(bool fine, const char* what) {
  std::printf("%s: %s\n", fine ? "ok" : "FAILED", what);
  failures += fine ? 0 : 1;
}

struct Case {
  at::Tensor edges, offsets, x;
  std::vector<at::Tensor> weights;
};

Case make_case(const std::vector<int64_t>& sizes, int64_t c, int64_t h, bool virtual_edges) {
  std::vector<int64_t> rows, offsets = {0};
  for (const int64_t size : sizes) {
    const int64_t first = offsets.back();
    for (int64_t u = 0; u < size; ++u) {
      for (int64_t v = u + 1; v < size; ++v) {
        if ((u * 7 + v * 3) % 4 == 0) rows.insert(rows.end(), {first + u, first + v, 1 + (v - u) / 3});
      }
    }
    offsets.push_back(first + size);
  }
  Case result;
  result.edges = at::tensor(rows, at::kLong).view({-1, 3});
  result.offsets = at::tensor(offsets, at::kLong);
  result.x = at::randn({offsets.back(), c}, at::kDouble);
  auto weight = [&](at::IntArrayRef shape) {
    result.weights.push_back(0.3 * at::randn(shape, at::kDouble));
  };
  for (int k = 0; k < (virtual_edges ? 2 : 1); ++k) weight({h, c}), weight({h}), weight({c, h}), weight({c});
  weight({3 * c, c}), weight({3 * c, c}), weight({3 * c}), weight({3 * c});
  return result;
}

at::Tensor perceptron(const at::Tensor& x, const std::vector<at::Tensor>& w, size_t first) {
  return at::relu(at::linear(at::relu(at::linear(x, w[first], w[first + 1])), w[first + 2], w[first + 3]));
}

at::Tensor loop(const Case& a, int64_t steps) {
  at::Tensor states = a.x.clone();
  const auto edges = a.edges.accessor<int64_t, 2>();
  const size_t gru = a.weights.size() - 4;
  for (int64_t sweep = 0; sweep < 2 * steps; ++sweep) {
    const int sender = sweep % 2 == 0 ? 0 : 1;
    for (int64_t i = 0; i < states.size(0); ++i) {
      const int64_t v = sender == 0 ? i : states.size(0) - 1 - i;
      at::Tensor message = at::zeros({1, states.size(1)}, at::kDouble);
      for (int64_t e = 0; e < edges.size(0); ++e) {
        if (edges[e][1 - sender] != v) continue;
        const at::Tensor from = states[edges[e][sender]].unsqueeze(0);
        if (edges[e][2] == 1) message = message + perceptron(from, a.weights, 0);
        if (gru == 8) message = message + perceptron(from, a.weights, 4) / edges[e][2];
      }
      states[v] = at::gru_cell(message, states[v].unsqueeze(0), a.weights[gru], a.weights[gru + 1],
                               a.weights[gru + 2], a.weights[gru + 3])[0];
    }
  }
  return states;
}

double largest(const at::Tensor& t) { return t.numel() == 0 ? 0 : t.abs().max().item<double>(); }

void test_values_and_gradients(bool virtual_edges) {
  Case a = make_case({7, 1, 12, 0, 5}, 12, 6, virtual_edges);
  const at::Tensor plan = ghn::gated_gnn_plan_cpu(a.edges, a.offsets);
  auto [out, saved] = ghn::gated_gnn_forward_cpu(a.x, plan, a.weights, 2, true);
  check(largest(out - loop(a, 2)) < 1e-12, "values equal the loop over the nodes");
  const auto without = std::get<0>(ghn::gated_gnn_forward_cpu(a.x, plan, a.weights, 2, false));
  check(at::equal(out, without), "the same bits without a record");
  const at::Tensor single =
      std::get<0>(ghn::gated_gnn_forward_cpu(a.x.to(at::kFloat), plan, [&] {
        std::vector<at::Tensor> weights;
        for (const auto& w : a.weights) weights.push_back(w.to(at::kFloat));
        return weights;
      }(), 2, false));
  check(largest(single.to(at::kDouble) - out) < 1e-5, "single precision is near double");

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
      value[side] = (std::get<0>(ghn::gated_gnn_forward_cpu(a.x, plan, a.weights, 2, false)) * probe)
                        .sum().item<double>();
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
  int64_t refused = 0;
  const int32_t values[] = {-1, 1, 7, 10000, 2147483647, -2147483647 - 1};
  for (int64_t i = 0; i < plan.numel(); ++i) {
    for (const int32_t value : values) {
      at::Tensor wild = plan.clone();
      wild[i] = value;
      try {
        auto [out, saved] = ghn::gated_gnn_forward_cpu(a.x, wild, a.weights, 1, true);
        ghn::gated_gnn_backward_cpu(out, a.x, wild, a.weights, saved, 1);
      } catch (const c10::Error&) {
        ++refused;
      }
    }
  }
  check(refused >= 4 * (plan.numel() - 8), "wild plans are refused, or harmless");
}

}  // namespace

int main() {
  at::manual_seed(0);
  test_values_and_gradients(true);
  test_values_and_gradients(false);
  test_wild_plans();
  return failures == 0 ? 0 : 1;
}
