// The gated GNN on CUDA but for the launches: memory, arguments, and the gradients of the weights
// as a few matrix products over what the backward kernel leaves per node. csrc/tests runs it on the
// host, with launches of its own.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>

#include <tuple>
#include <vector>

#include "../common/gated_gnn_args.h"
#include "gated_gnn.h"

namespace ghn::cuda {

inline Problem problem_of(const GatedGnnArgs& args, const at::Tensor& x, const at::Tensor& plan,
                          int64_t steps) {
  Problem problem;
  problem.shape = args;
  problem.element = x.scalar_type() == at::kHalf       ? Element::float16
                    : x.scalar_type() == at::kBFloat16 ? Element::bfloat16
                                                       : Element::same;
  problem.num_nodes = args.num_nodes;
  problem.plan_size = plan.numel();
  problem.sweeps = int32_t(2 * steps);
  return problem;
}

// `Launches` has pack(problem, weights, backward, packed), forward(args) and backward(args).
template <class T, class Launches>
void forward(const Launches& launches, const GatedGnnArgs& args, const Problem& problem,
             const at::Tensor& x, const at::Tensor& plan, const at::Tensor& record,
             const at::Tensor& out) {
  const at::Tensor packed = at::empty({PackedWeights<T>::size(args.record)}, record.options());
  const at::Tensor start = at::empty({args.num_nodes, args.record.c}, record.options());
  launches.pack(problem, args.pointers().data(), false, packed.data_ptr<T>());
  launches.forward(ForwardArgs<T>{problem, x.const_data_ptr(), plan.const_data_ptr<int32_t>(),
                                  packed.const_data_ptr<T>(), start.data_ptr<T>(),
                                  record.data_ptr<T>(), int32_t(record.size(0)), out.data_ptr()});
}

template <class T, class Launches>
void backward(const Launches& launches, const GatedGnnArgs& args, const Problem& problem,
              const at::Tensor& grad, const at::Tensor& x, const at::Tensor& plan,
              const at::Tensor& record, const at::Tensor& factors, const at::Tensor& start,
              const at::Tensor& grad_x) {
  const at::Tensor packed = at::empty({PackedWeights<T>::size(args.record)}, record.options());
  const at::Tensor d_rows = at::empty({2, args.num_nodes, args.record.c}, record.options());
  launches.pack(problem, args.pointers().data(), true, packed.data_ptr<T>());
  launches.backward(BackwardArgs<T>{problem, grad.const_data_ptr(), x.const_data_ptr(),
                                    plan.const_data_ptr<int32_t>(), packed.const_data_ptr<T>(),
                                    record.const_data_ptr<T>(), factors.data_ptr<T>(),
                                    start.data_ptr<T>(), d_rows.data_ptr<T>(),
                                    d_rows.data_ptr<T>() + args.num_nodes * args.record.c,
                                    grad_x.data_ptr()});
}

// Columns [column, column + width) of an array with rows of `row_width`, which lies behind `before`
// elements per node in every sweep: (sweeps, N, width).
inline at::Tensor columns(const at::Tensor& arrays, int64_t before, int64_t row_width,
                          int64_t column, int64_t width) {
  const int64_t sweeps = arrays.size(0), num_nodes = arrays.size(1);
  return arrays.view({sweeps, -1})
      .narrow(1, before * num_nodes, row_width * num_nodes)
      .view({sweeps, num_nodes, row_width})
      .narrow(2, column, width);
}

// sum over sweeps and nodes of a^T b
inline at::Tensor product(const at::Tensor& a, const at::Tensor& b) {
  return at::bmm(a.transpose(1, 2), b).sum(0);
}

// Sum over sweeps and nodes. The dimensions have a type: a braced list also fits an overload for
// named dimensions, which torch 2.11 has.
inline at::Tensor sum_over_nodes(const at::Tensor& a) {
  static constexpr int64_t kDims[] = {0, 1};
  return a.sum(at::IntArrayRef(kDims, 2));
}

// From what forward and backward leave per node (Fields, Factors) and the states that went in: four
// products and three sums, with the padding and the blocks that pair one perceptron with the other,
// and slices of the results.
inline std::vector<at::Tensor> weight_gradients(const GatedGnnArgs& args, const at::Tensor& start,
                                                const at::Tensor& saved,
                                                const at::Tensor& factors) {
  const Record& r = args.record;
  const int64_t c = args.channels, sweeps = saved.size(0), sent_width = r.messages * r.c;
  const at::Tensor state = columns(saved, 0, r.c, 0, r.c);
  const at::Tensor message = columns(saved, r.c, r.c, 0, r.c);
  const at::Tensor hidden = columns(saved, 6 * r.c, r.hidden, 0, r.hidden);
  const at::Tensor before =
      at::cat({start.unsqueeze(0), state.narrow(0, 0, sweeps - 1)}, 0);  // (sweeps, N, C)
  const at::Tensor d_gates = columns(factors, 0, 4 * r.c, 0, 4 * r.c);
  const at::Tensor d_hidden = columns(factors, 4 * r.c, r.hidden, 0, r.hidden);
  const at::Tensor d_sent = columns(factors, 4 * r.c + r.hidden, sent_width, 0, sent_width);

  // Results of an op share no memory.
  const auto own = [](const at::Tensor& part) { return part.clone(at::MemoryFormat::Contiguous); };
  const at::Tensor first = product(d_hidden, state), first_b = sum_over_nodes(d_hidden);
  const at::Tensor second = product(d_sent, hidden), second_b = sum_over_nodes(d_sent);
  std::vector<at::Tensor> result;
  for (int64_t k = 0; k < args.messages; ++k) {
    const int64_t h = args.hidden[k], shift = k == 0 ? 0 : r.h[0];
    result.push_back(own(first.narrow(0, shift, h).narrow(1, 0, c)));
    result.push_back(own(first_b.narrow(0, shift, h)));
    result.push_back(own(second.narrow(0, k * r.c, c).narrow(1, shift, h)));
    result.push_back(own(second_b.narrow(0, k * r.c, c)));
  }
  // Gradients lie as n r z hn; weight_ih takes r z n, weight_hh takes r z hn.
  const at::Tensor ih = product(d_gates, message).view({4, r.c, r.c});
  const at::Tensor hh = product(d_gates, before).view({4, r.c, r.c});
  const at::Tensor biases = sum_over_nodes(d_gates).view({4, r.c});
  const auto gates = [&](const at::Tensor& of, bool of_message) {
    at::Tensor found = of_message ? at::cat({of.narrow(0, 1, 2), of.narrow(0, 0, 1)}, 0)
                                  : of.narrow(0, 1, 3);
    for (int64_t dim = 1; dim < found.dim(); ++dim) found = found.narrow(dim, 0, c);
    return own(found.flatten(0, 1));
  };
  result.insert(result.end(),
                {gates(ih, true), gates(hh, false), gates(biases, true), gates(biases, false)});
  return result;
}

// Contiguous, from a multiple of 16 bytes on: the kernels read four elements of a record at a time.
inline at::Tensor aligned(const at::Tensor& record) {
  const at::Tensor result = record.contiguous();
  const bool fits = reinterpret_cast<uintptr_t>(result.const_data_ptr()) % 16 == 0;
  return fits ? result : result.clone();
}

template <class Launches>
std::tuple<at::Tensor, at::Tensor> run_forward(const Launches& launches, const GatedGnnArgs& args,
                                               const at::Tensor& x, const at::Tensor& plan,
                                               int64_t steps, bool save) {
  const at::Tensor rows = x.contiguous();
  const at::Tensor out = at::empty_like(rows);
  const auto options = x.options().dtype(args.compute);
  // Without gradients two records take turns.
  const at::Tensor record =
      at::empty({save ? 2 * steps : 2, args.num_nodes, args.record.width}, options);
  if (rows.numel() > 0) {
    const Problem problem = problem_of(args, x, plan, steps);
    if (args.compute == at::kFloat) {
      forward<float>(launches, args, problem, rows, plan, record, out);
    } else {
      forward<double>(launches, args, problem, rows, plan, record, out);
    }
  }
  return {out, save ? record : at::empty({0}, options)};
}

template <class Launches>
std::tuple<at::Tensor, std::vector<at::Tensor>> run_backward(
    const Launches& launches, const GatedGnnArgs& args, const at::Tensor& grad, const at::Tensor& x,
    const at::Tensor& plan, const at::Tensor& saved, int64_t steps) {
  const at::Tensor d = grad.contiguous(), rows = x.contiguous(), record = aligned(saved);
  const at::Tensor grad_x = at::empty_like(rows);
  std::vector<at::Tensor> grad_weights;
  if (rows.numel() == 0) {
    for (const at::Tensor& weight : args.weights) grad_weights.push_back(at::zeros_like(weight));
    return {grad_x, grad_weights};
  }
  const int64_t width = Factors<float>::width(args.record);
  const at::Tensor factors = at::empty({2 * steps, args.num_nodes, width}, record.options());
  const at::Tensor start = at::empty({args.num_nodes, args.record.c}, record.options());
  const Problem problem = problem_of(args, x, plan, steps);
  if (args.compute == at::kFloat) {
    backward<float>(launches, args, problem, d, rows, plan, record, factors, start, grad_x);
  } else {
    backward<double>(launches, args, problem, d, rows, plan, record, factors, start, grad_x);
  }
  for (const at::Tensor& weight : weight_gradients(args, start, record, factors)) {
    grad_weights.push_back(weight.to(x.scalar_type()));
  }
  return {grad_x, grad_weights};
}

}  // namespace ghn::cuda
