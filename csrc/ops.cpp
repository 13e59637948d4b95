// Every schema of the native ops. The back ends implement them in cpu/ and cuda/; fake kernels and
// gradients are in ghn_fast/ops/, beside the public functions.
#include <torch/library.h>

TORCH_LIBRARY(ghn_fast, m) {
  // edges (M, 3) of rows (from, to, distance), offsets (B + 1) -> packed plan, int32. A plan on
  // another device is made by gated_gnn_plan_to, from the one on the CPU.
  //
  // An op that takes a plan raises ValueError if it is not sound: in full when it first sees the
  // tensor and after every write that torch knows of; what these two ops return is known to be
  // sound. A plan on a GPU that they did not make costs a copy to the host, once. Reads stay in
  // bounds whatever the memory of a plan holds. See common/plan_check.h.
  m.def("gated_gnn_plan(Tensor edges, Tensor offsets) -> Tensor");
  m.def("gated_gnn_plan_to(Tensor plan, Device device) -> Tensor");

  // x (N, C) in float32, float64, float16 or bfloat16, and so the weights, `out` and all gradients;
  // the narrow ones are computed in float32. weights: weight and bias of both layers of mlp, the
  // same of mlp_ve where virtual edges are used, weight_ih, weight_hh, bias_ih, bias_hh of the GRU.
  // `saved` is empty unless `save`; otherwise (2 steps, N, Record::width) in the dtype of the
  // arithmetic, laid out as in common/gated_gnn_layout.h, alike on every back end.
  m.def(
      "gated_gnn_forward(Tensor x, Tensor plan, Tensor[] weights, int steps, bool save)"
      " -> (Tensor out, Tensor saved)");
  m.def(
      "gated_gnn_backward(Tensor grad, Tensor x, Tensor plan, Tensor[] weights, Tensor saved,"
      " int steps) -> (Tensor grad_x, Tensor[] grad_weights)");
}
