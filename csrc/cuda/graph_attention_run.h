// Attention within graphs on CUDA in tensors: checks, memory and the launches that `Launches` does,
// of a GPU or of its emulation on the host.
#pragma once

#include <algorithm>
#include <cmath>
#include <tuple>

#include "../common/checks.h"
#include "graph_attention.h"

namespace ghn::cuda {

struct AttentionInputs {
  Tensor qkv, codes, table;
  IntArrayRef offsets;

  AttentionInputs(const Tensor& given, const Tensor& code, IntArrayRef offset, const Tensor& bias)
      : offsets(offset) {
    check_dtype(given, kFloat, "qkv");
    GHN_CHECK(given.dim() == 4 && given.size(1) == 3 && given.size(2) > 0 && given.size(3) > 0 &&
                  given.size(3) <= kWidestHead,
              "qkv: got shape ", given.sizes(), ", needs (N, 3, H, d) with d up to ", kWidestHead);
    GHN_CHECK(given.size(2) < 65536, "qkv: got ", given.size(2), " heads, needs at most 65,535");
    check_device(bias, given.device(), "table");
    check_dtype(bias, kFloat, "table");
    GHN_CHECK(bias.dim() == 2 && bias.size(0) > 0 && bias.size(1) == given.size(2),
              "table: got shape ", bias.sizes(), ", needs (R, ", given.size(2), ")");
    check_device(code, given.device(), "codes");
    GHN_CHECK(code.scalar_type() == kByte || code.scalar_type() == kShort, "codes: got ",
              code.scalar_type(), ", needs uint8 or int16");
    GHN_CHECK(!offset.empty() && offset[0] == 0 && offset.back() == given.size(0) &&
                  std::is_sorted(offset.begin(), offset.end()),
              "offsets: got ", offset, ", needs numbers that ascend from 0 to ", given.size(0));
    int64_t pairs = 0;
    for (size_t g = 0; g + 1 < offset.size(); ++g) {
      pairs += (offset[g + 1] - offset[g]) * (offset[g + 1] - offset[g]);
    }
    GHN_CHECK(code.dim() == 1 && code.size(0) == pairs, "codes: got shape ", code.sizes(),
              ", needs (", pairs, ",)");
    qkv = given.contiguous();
    codes = code.contiguous();
    table = bias.contiguous();
  }

  AttentionArgs args() const {
    AttentionArgs made{};
    made.heads = qkv.size(2), made.width = qkv.size(3), made.rows = table.size(0);
    made.scale = 1.0f / std::sqrt(float(made.width));
    made.wide = codes.scalar_type() == kShort;
    made.qkv = qkv.const_data_ptr<float>();
    made.codes = codes.const_data_ptr();
    made.table = table.const_data_ptr<float>();
    return made;
  }

  int64_t tiles() const {
    int64_t all = 0;
    for (size_t g = 0; g + 1 < offsets.size(); ++g) {
      all += Graphs::tiles_of(offsets[g + 1] - offsets[g]);
    }
    return all;
  }

  // Calls run(graphs, tiles) for as many graphs as a launch takes at a time.
  template <class Run>
  void each(const Run& run) const {
    Graphs graphs{};
    int64_t tiles = 0;
    const auto flush = [&] {
      if (tiles > 0) run(graphs, tiles);
      graphs.tile += tiles;
      for (int32_t g = 0; g < graphs.count; ++g) {
        const int64_t nodes = graphs.first[g + 1] - graphs.first[g];
        graphs.pair += nodes * nodes;
      }
      graphs.count = 0;
      tiles = 0;
    };
    for (size_t g = 0; g + 1 < offsets.size(); ++g) {
      if (graphs.count == kMostGraphs) flush();
      graphs.first[graphs.count] = offsets[g];
      graphs.first[++graphs.count] = offsets[g + 1];
      tiles += Graphs::tiles_of(offsets[g + 1] - offsets[g]);
    }
    flush();
  }
};

template <class Launches>
std::tuple<Tensor, Tensor> run_attention(const Launches& launches, const AttentionInputs& given) {
  AttentionArgs args = given.args();
  Tensor out = empty({given.qkv.size(0), args.heads * args.width}, given.qkv.options());
  Tensor logsum = empty({given.qkv.size(0), args.heads}, given.qkv.options());
  args.out = out.data_ptr<float>();
  args.logsum = logsum.data_ptr<float>();
  given.each([&](const Graphs& graphs, int64_t tiles) { launches.forward(args, graphs, tiles); });
  return {out, logsum};
}

template <class Launches>
std::tuple<Tensor, Tensor> run_attention_backward(const Launches& launches,
                                                  const AttentionInputs& given, const Tensor& grad,
                                                  const Tensor& out, const Tensor& logsum) {
  AttentionArgs args = given.args();
  const int64_t nodes = given.qkv.size(0);
  for (const auto& [tensor, name] : {std::pair(&grad, "grad"), std::pair(&out, "out")}) {
    check_device(*tensor, given.qkv.device(), name);
    check_dtype(*tensor, kFloat, name);
    check_shape(*tensor, {nodes, args.heads * args.width}, name);
  }
  check_device(logsum, given.qkv.device(), "logsum");
  check_dtype(logsum, kFloat, "logsum");
  check_shape(logsum, {nodes, args.heads}, "logsum");
  const Tensor slopes = grad.contiguous(), sums = logsum.contiguous();
  const Tensor mean = (slopes * out).view({nodes, args.heads, args.width}).sum(2);
  Tensor grad_qkv = empty_like(given.qkv);
  const Tensor parts = empty({given.tiles(), args.heads, args.rows}, given.qkv.options());
  args.logsum = const_cast<float*>(sums.const_data_ptr<float>());
  args.grad = slopes.const_data_ptr<float>();
  args.mean = mean.const_data_ptr<float>();
  args.grad_qkv = grad_qkv.data_ptr<float>();
  args.parts = parts.data_ptr<float>();
  given.each([&](const Graphs& graphs, int64_t tiles) { launches.backward(args, graphs, tiles); });
  return {grad_qkv, parts.sum(0).t().contiguous()};
}

}  // namespace ghn::cuda
