// Every schema of the ops on the stable ABI; those that are not are in aten/ops.cpp. The back ends
// implement them in cpu/ and cuda/; fake kernels and gradients are in ghn_fast/ops/, beside the
// public functions. Wrong arguments raise ValueError, types included.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(ghn_fast, m) {
  // edges (M, 3) of rows (from, to, distance), offsets (B + 1) -> packed plan, int32. A plan on
  // another device is made by gated_gnn_plan_to, from the one on the CPU.
  //
  // An op that takes a plan raises ValueError if it is not sound. What these two ops,
  // gated_gnn_join and deepnets_graph return is known to be sound; anything else is checked when
  // its contents are first seen. A plan on a GPU that they did not make costs a copy to the host,
  // once, and again after every write that torch knows of. Reads stay in bounds whatever the memory
  // of a plan holds. See plan/gated_gnn_plan_check.h.
  m.def("gated_gnn_plan(Tensor edges, Tensor offsets) -> Tensor");
  m.def("gated_gnn_plan_to(Tensor plan, Device device, bool pin=False) -> Tensor");

  // Plans of batches -> plan of all their graphs side by side; and the edges (M, 3) of a plan.
  m.def("gated_gnn_join(Tensor[] plans) -> Tensor");
  m.def("gated_gnn_plan_edges(Tensor plan) -> Tensor");

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

  // table (R, 13), int64 on the CPU: the rows of a plan (csrc/common/expand_params_args.h), in the
  // order of their offsets in the flat result of `numel` elements. packed: the same with the order
  // of work, made by expand_params_pack and moved to the device of the blocks; CUDA needs it.
  m.def("expand_params(Tensor[] blocks, Tensor table, Tensor? packed, int numel) -> Tensor");
  m.def(
      "expand_params_backward(Tensor grad, Tensor[] blocks, Tensor table, Tensor? packed)"
      " -> Tensor[]");
  m.def("expand_params_pack(Tensor table, Tensor[] blocks, int numel) -> Tensor");
  // Row r goes to out[r], of any floating-point type, instead of its offset. Whoever calls it tells
  // autograd that `out` was written to (torch.autograd.graph.increment_version).
  m.def("expand_params_into(Tensor[] blocks, Tensor table, Tensor(a!)[] out) -> ()");

  // x (N, C), nodes: rows of x, group by group. groups: six numbers for each, (decoder, out, in,
  // height, width, count), where 0 is a block, 1 a vector, 2 and 3 weight and bias of a classifier.
  // weights: weight and bias of seven layers (ghn_fast/ops/decode_blocks.py) -> per group (count,
  // out, in, height, width), (count, 2, channels), (count, classes, in) or (count, classes).
  // float32, without gradients.
  // Positions of small kernels are the first ones, or those in the `middle`.
  m.def(
      "decode_blocks(Tensor x, Tensor nodes, int[] groups, Tensor[] weights, bool middle=False)"
      " -> Tensor[]");

  // qkv (N, 3, H, d), codes: (n, n) of each graph, row by row, uint8 or int16; table (R, H); offsets
  // (B + 1) -> out (N, H d), logsum (N, H) of the logits. float32.
  m.def(
      "graph_attention_forward(Tensor qkv, Tensor codes, int[] offsets, Tensor table)"
      " -> (Tensor out, Tensor logsum)");
  m.def(
      "graph_attention_backward(Tensor grad, Tensor qkv, Tensor codes, int[] offsets,"
      " Tensor table, Tensor out, Tensor logsum) -> (Tensor grad_qkv, Tensor grad_table)");

  // records: packed architectures, uint8, one behind the other, each up to its of `ends` (B)
  // -> rows (nodes, parameters for each image size); nodes is 0 unless asked for.
  m.def(
      "deepnets_sizes(Tensor records, Tensor ends, int num_classes, int[] image_sizes, bool nodes)"
      " -> Tensor");
  // -> types (N), rows (name, dims, shape) of the nodes (N, 6), names of the parameters that no
  // node stands for, plan. The graph is that for images of structure_size.
  m.def(
      "deepnets_graph(Tensor record, int num_classes, int image_size, int structure_size,"
      " int virtual_edges) -> (Tensor types, Tensor nodes, Tensor skipped, Tensor plan)");

  // edges (E, 2) of pairs (from, to), from < to -> (M, 3) of rows (from, to, distance), int64.
  m.def("shortest_distances(Tensor edges, int num_nodes, int cutoff) -> Tensor");

  // Per graph edges (M_g, 3) of rows (from, to, distance) -> (sum of M_g, 3), nodes shifted by
  // offsets (B + 1).
  m.def("collate_edges(Tensor[] edges, int[] offsets) -> Tensor");
}
