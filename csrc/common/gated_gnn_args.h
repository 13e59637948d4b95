// The arguments of the gated GNN, checked; the same on every device.
#pragma once

#include <vector>

#include "checks.h"
#include "gated_gnn_layout.h"

namespace ghn {

struct GatedGnnArgs : Shape {
  int64_t num_nodes;
  ScalarType compute;           // of the arithmetic, the states and `saved`
  std::vector<Tensor> weights;  // contiguous

  // As the functions of gated_gnn_layout.h take them.
  std::vector<void*> pointers() const {
    std::vector<void*> result;
    for (const Tensor& weight : weights) result.push_back(weight.data_ptr());
    return result;
  }
};

inline bool is_narrow(ScalarType dtype) { return dtype == kHalf || dtype == kBFloat16; }

inline GatedGnnArgs gated_gnn_args(const Tensor& x, const Tensor& plan, TensorList weights,
                                   int64_t steps) {
  static const char* const names[12] = {
      "mlp.weight_0",    "mlp.bias_0",      "mlp.weight_1",    "mlp.bias_1",
      "mlp_ve.weight_0", "mlp_ve.bias_0",   "mlp_ve.weight_1", "mlp_ve.bias_1",
      "gru.weight_ih",   "gru.weight_hh",   "gru.bias_ih",     "gru.bias_hh"};
  const ScalarType dtype = x.scalar_type();
  GHN_CHECK(dtype == kFloat || dtype == kDouble || is_narrow(dtype), "x: got ", dtype,
            ", needs float32, float64, float16 or bfloat16");
  GHN_CHECK(x.dim() == 2, "x: got shape ", x.sizes(), ", needs (N, C)");
  GHN_CHECK(x.size(1) <= kMaxChannels, "x: got ", x.size(1), " channels, needs at most ",
            kMaxChannels);
  GHN_CHECK(weights.size() == 8 || weights.size() == 12, "weights: got ", weights.size(),
            " tensors, needs 8 or 12");
  GHN_CHECK(steps >= 1 && steps < (int64_t(1) << 30), "steps: got ", steps, ", needs at least 1");
  check_dtype(plan, kInt, "plan");
  check_device(plan, x.device(), "plan");
  GHN_CHECK(plan.dim() == 1 && plan.is_contiguous(), "plan: got shape ", plan.sizes(),
            " and strides ", plan.strides(), ", needs a contiguous vector");
  GatedGnnArgs args;
  args.num_nodes = x.size(0);
  args.channels = x.size(1);
  args.compute = is_narrow(dtype) ? kFloat : dtype;
  args.messages = weights.size() == 12 ? 2 : 1;
  const int64_t gru = 4 * args.messages;
  for (int64_t i = 0; i < int64_t(weights.size()); ++i) {
    const char* name = names[i < gru ? i : 8 + i - gru];
    check_dtype(weights[i], dtype, name);
    check_device(weights[i], x.device(), name);
    args.weights.push_back(weights[i].contiguous());
  }
  const int64_t c = args.channels;
  args.hidden[1] = 0;
  for (int64_t k = 0; k < args.messages; ++k) {
    const Tensor* const mlp = args.weights.data() + 4 * k;
    GHN_CHECK(mlp[0].dim() == 2, names[4 * k], ": got shape ", mlp[0].sizes(), ", needs (H, ", c,
              ")");
    const int64_t h = args.hidden[k] = mlp[0].size(0);
    check_shape(mlp[0], {h, c}, names[4 * k]);
    check_shape(mlp[1], {h}, names[4 * k + 1]);
    check_shape(mlp[2], {c, h}, names[4 * k + 2]);
    check_shape(mlp[3], {c}, names[4 * k + 3]);
  }
  check_shape(args.weights[gru], {3 * c, c}, names[8]);
  check_shape(args.weights[gru + 1], {3 * c, c}, names[9]);
  check_shape(args.weights[gru + 2], {3 * c}, names[10]);
  check_shape(args.weights[gru + 3], {3 * c}, names[11]);
  args.record = Record::of(c, args.hidden[0], args.hidden[1], args.messages);
  return args;
}

// The arguments that only the backward has.
inline void check_backward_args(const GatedGnnArgs& args, const Tensor& grad, const Tensor& x,
                                const Tensor& saved, int64_t steps) {
  check_dtype(grad, x.scalar_type(), "grad");
  check_device(grad, x.device(), "grad");
  check_shape(grad, x.sizes(), "grad");
  check_dtype(saved, args.compute, "saved");
  check_device(saved, x.device(), "saved");
  check_shape(saved, {2 * steps, args.num_nodes, args.record.width}, "saved");
}

}  // namespace ghn
