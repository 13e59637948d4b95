// Batches of small graphs, the loop over their nodes that defines the result, and the CPU ops.
#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <tuple>
#include <vector>

#include "checks.h"
#include "ops.h"

namespace ghn {
inline constexpr tests::Op<at::Tensor(const at::Tensor&, const at::Tensor&)> gated_gnn_plan_cpu{
    "ghn_fast::gated_gnn_plan"};
inline constexpr tests::Op<std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, const at::Tensor&,
                                                              at::TensorList, int64_t, bool)>
    gated_gnn_forward_cpu{"ghn_fast::gated_gnn_forward"};
inline constexpr tests::Op<std::tuple<at::Tensor, std::vector<at::Tensor>>(
    const at::Tensor&, const at::Tensor&, const at::Tensor&, at::TensorList, const at::Tensor&,
    int64_t)>
    gated_gnn_backward_cpu{"ghn_fast::gated_gnn_backward"};
}  // namespace ghn

namespace ghn::cases {

struct Case {
  at::Tensor edges, offsets, x;
  std::vector<at::Tensor> weights;

  Case to(at::ScalarType dtype) const {
    Case result = *this;
    result.x = x.to(dtype);
    for (at::Tensor& weight : result.weights) weight = weight.to(dtype);
    return result;
  }
};

// Graphs of these sizes with these rows of edges (from, to, distance), states and weights.
inline Case with_edges(const std::vector<int64_t>& sizes, const std::vector<int64_t>& rows,
                       int64_t c, int64_t h, bool virtual_edges) {
  std::vector<int64_t> offsets = {0};
  for (const int64_t size : sizes) offsets.push_back(offsets.back() + size);
  Case result;
  result.edges = at::tensor(rows, at::kLong).view({-1, 3});
  result.offsets = at::tensor(offsets, at::kLong);
  result.x = at::randn({offsets.back(), c}, at::kDouble);
  auto weight = [&](at::IntArrayRef shape) {
    const double scale = 1.0 / std::sqrt(double(shape.back()));
    result.weights.push_back(scale * at::randn(shape, at::kDouble));
  };
  for (int k = 0; k < (virtual_edges ? 2 : 1); ++k) {
    weight({h, c}), weight({h}), weight({c, h}), weight({c});
  }
  weight({3 * c, c}), weight({3 * c, c}), weight({3 * c}), weight({3 * c});
  return result;
}

inline Case make_case(const std::vector<int64_t>& sizes, int64_t c, int64_t h, bool virtual_edges) {
  std::vector<int64_t> rows;
  int64_t first = 0;
  for (const int64_t size : sizes) {
    for (int64_t u = 0; u < size; ++u) {
      for (int64_t v = u + 1; v < size; ++v) {
        if ((u * 7 + v * 3) % 4 == 0) {
          rows.insert(rows.end(), {first + u, first + v, 1 + (v - u) / 3});
        }
      }
    }
    first += size;
  }
  return with_edges(sizes, rows, c, h, virtual_edges);
}

// Graphs whose levels have so many nodes: each node has an edge from one of the level before, and
// edges and virtual edges from others before it, `often` of a hundred.
inline Case layered_case(const std::vector<std::vector<int64_t>>& levels, int often, int64_t c,
                         int64_t h, bool virtual_edges) {
  std::mt19937 random(1);
  std::vector<int64_t> rows, sizes;
  int64_t first = 0;
  for (const std::vector<int64_t>& widths : levels) {
    int64_t begin = first, before = first;  // of a level, and of the one before it
    for (const int64_t width : widths) {
      for (int64_t v = begin; v < begin + width; ++v) {
        const int64_t sure = begin > before ? before + int64_t(random() % (begin - before)) : -1;
        for (int64_t u = first; u < begin; ++u) {
          const bool drawn = int(random() % 100) < often;
          if (u == sure || drawn) {
            const int64_t most = std::min<int64_t>(v - u, 50);
            rows.insert(rows.end(), {u, v, u == sure ? 1 : 1 + int64_t(random() % most)});
          }
        }
      }
      before = begin;
      begin += width;
    }
    sizes.push_back(begin - first);
    first = begin;
  }
  return with_edges(sizes, rows, c, h, virtual_edges);
}

inline at::Tensor perceptron(const at::Tensor& x, const std::vector<at::Tensor>& w, size_t first) {
  const at::Tensor hidden = at::relu(at::linear(x, w[first], w[first + 1]));
  return at::relu(at::linear(hidden, w[first + 2], w[first + 3]));
}

inline at::Tensor loop(const Case& a, int64_t steps) {
  at::Tensor states = a.x.clone();
  const auto edges = a.edges.accessor<int64_t, 2>();
  const size_t gru = a.weights.size() - 4;
  for (int64_t sweep = 0; sweep < 2 * steps; ++sweep) {
    const int sender = sweep % 2 == 0 ? 0 : 1;
    for (int64_t i = 0; i < states.size(0); ++i) {
      const int64_t v = sender == 0 ? i : states.size(0) - 1 - i;
      at::Tensor message = at::zeros({1, states.size(1)}, a.x.options());
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

inline double largest(const at::Tensor& t) {
  return t.numel() == 0 ? 0 : t.abs().max().item<double>();
}

}  // namespace ghn::cases
