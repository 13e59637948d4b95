// The arguments of the gated GNN, checked; the same on every device.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <vector>

#include "checks.h"
#include "plan.h"

namespace ghn {

struct GatedGnnArgs {
  int64_t num_nodes, channels, hidden[2], messages;
  Record record;
  std::vector<at::Tensor> weights;  // contiguous

  const at::Tensor& mlp(int64_t message, int64_t i) const { return weights[4 * message + i]; }
  const at::Tensor& gru(int64_t i) const { return weights[4 * messages + i]; }
};

inline GatedGnnArgs gated_gnn_args(const at::Tensor& x, const at::Tensor& plan,
                                   at::TensorList weights, int64_t steps) {
  static const char* const names[12] = {
      "mlp.weight_0",    "mlp.bias_0",      "mlp.weight_1",    "mlp.bias_1",
      "mlp_ve.weight_0", "mlp_ve.bias_0",   "mlp_ve.weight_1", "mlp_ve.bias_1",
      "gru.weight_ih",   "gru.weight_hh",   "gru.bias_ih",     "gru.bias_hh"};
  TORCH_CHECK_TYPE(x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble, "x: got ",
                   x.scalar_type(), ", needs float32 or float64");
  TORCH_CHECK_VALUE(x.dim() == 2, "x: got shape ", x.sizes(), ", needs (N, C)");
  TORCH_CHECK_VALUE(weights.size() == 8 || weights.size() == 12, "weights: got ", weights.size(),
                    " tensors, needs 8 or 12");
  TORCH_CHECK_VALUE(steps >= 1, "steps: got ", steps, ", needs at least 1");
  check_dtype(plan, at::kInt, "plan");
  check_device(plan, x.device(), "plan");
  TORCH_CHECK_VALUE(plan.dim() == 1 && plan.is_contiguous(), "plan: got shape ", plan.sizes(),
                    ", needs a contiguous vector");
  GatedGnnArgs args;
  args.num_nodes = x.size(0);
  args.channels = x.size(1);
  args.messages = weights.size() == 12 ? 2 : 1;
  for (int64_t i = 0; i < int64_t(weights.size()); ++i) {
    const char* name = names[i < 4 * args.messages ? i : i + 12 - int64_t(weights.size())];
    check_dtype(weights[i], x.scalar_type(), name);
    check_device(weights[i], x.device(), name);
    args.weights.push_back(weights[i].contiguous());
  }
  const int64_t c = args.channels;
  for (int64_t k = 0; k < args.messages; ++k) {
    TORCH_CHECK_VALUE(args.mlp(k, 0).dim() == 2, names[4 * k], ": got shape ",
                      args.mlp(k, 0).sizes(), ", needs (H, ", c, ")");
    const int64_t h = args.mlp(k, 0).size(0);
    args.hidden[k] = h;
    check_shape(args.mlp(k, 0), {h, c}, names[4 * k]);
    check_shape(args.mlp(k, 1), {h}, names[4 * k + 1]);
    check_shape(args.mlp(k, 2), {c, h}, names[4 * k + 2]);
    check_shape(args.mlp(k, 3), {c}, names[4 * k + 3]);
  }
  if (args.messages == 1) args.hidden[1] = 0;
  check_shape(args.gru(0), {3 * c, c}, names[8]);
  check_shape(args.gru(1), {3 * c, c}, names[9]);
  check_shape(args.gru(2), {3 * c}, names[10]);
  check_shape(args.gru(3), {3 * c}, names[11]);
  args.record = Record::of(c, args.hidden[0], args.hidden[1], args.messages);
  return args;
}

}  // namespace ghn
