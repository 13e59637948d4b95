// The gated GNN on CUDA but for the launches: memory and arguments. csrc/tests runs it on the host,
// with launches of its own.
#pragma once

#include <tuple>
#include <vector>

#include "../common/gated_gnn_args.h"
#include "gated_gnn_ahead.h"
#include "gated_gnn_weights.h"

namespace ghn::cuda {

inline Problem problem_of(const GatedGnnArgs& args, const Tensor& x, const Tensor& plan,
                          int64_t steps) {
  Problem problem;
  problem.shape = args;
  problem.element = x.scalar_type() == kHalf       ? Element::float16
                    : x.scalar_type() == kBFloat16 ? Element::bfloat16
                                                   : Element::same;
  problem.num_nodes = args.num_nodes;
  problem.plan_size = plan.numel();
  problem.sweeps = int32_t(2 * steps);
  return problem;
}

// Scratch memory of the kernels that sum edges ahead, nothing if they are not for these weights.
template <class T>
Tensor schedule_memory(const Problem& problem, const Tensor& like) {
  const bool used = runs_ahead(problem.shape.record);
  return empty({used ? Schedule<T>::bytes(problem) : 0}, like.options().dtype(kByte));
}

// `Launches` has pack(problem, weights, backward, packed), forward(args) and backward(args).
template <class T, class Launches>
void forward(const Launches& launches, const GatedGnnArgs& args, const Problem& problem,
             const Tensor& x, const Tensor& plan, const Tensor& record, const Tensor& out) {
  const Tensor packed = empty({PackedWeights<T>::size(args.record)}, record.options());
  const Tensor start = empty({args.num_nodes, args.record.c}, record.options());
  launches.pack(problem, args.pointers().data(), false, packed.data_ptr<T>());
  const Tensor schedule = schedule_memory<T>(problem, record);
  launches.forward(ForwardArgs<T>{problem, x.const_data_ptr(), plan.const_data_ptr<int32_t>(),
                                  packed.const_data_ptr<T>(), start.data_ptr<T>(),
                                  record.data_ptr<T>(), int32_t(record.size(0)), out.data_ptr(),
                                  schedule.data_ptr()});
}

template <class T, class Launches>
void backward(const Launches& launches, const GatedGnnArgs& args, const Problem& problem,
              const Tensor& grad, const Tensor& x, const Tensor& plan, const Tensor& record,
              const Tensor& grad_x, const std::vector<Tensor>& grad_weights) {
  const Record& r = args.record;
  const int64_t rows = problem.sweeps * args.num_nodes, size = PackedWeights<T>::size(r);
  const int64_t chunks = WeightProducts<T>::chunks(r, rows);
  const Tensor packed = empty({size}, record.options());
  // The states before the first sweep, and the gradients of states and messages.
  const Tensor nodes = empty({3, args.num_nodes, r.c}, record.options());
  const Tensor factors = empty({rows, Factors<T>::width(r)}, record.options());
  const Tensor partial = empty({chunks, size}, record.options());
  const Tensor schedule = schedule_memory<T>(problem, record);
  T* const start = nodes.data_ptr<T>();
  BackwardArgs<T> given{problem, grad.const_data_ptr(), x.const_data_ptr(),
                        plan.const_data_ptr<int32_t>(), packed.const_data_ptr<T>(),
                        record.const_data_ptr<T>(), factors.data_ptr<T>(), start,
                        start + args.num_nodes * r.c, start + 2 * args.num_nodes * r.c,
                        grad_x.data_ptr(), partial.data_ptr<T>(), chunks, {}, schedule.data_ptr()};
  for (size_t i = 0; i < grad_weights.size(); ++i) given.grads[i] = grad_weights[i].data_ptr();
  launches.pack(problem, args.pointers().data(), true, packed.data_ptr<T>());
  launches.backward(given);
}

// Contiguous, from a multiple of 16 bytes on: the kernels read four elements of a record at a time.
inline Tensor aligned(const Tensor& record) {
  const Tensor result = record.contiguous();
  const bool fits = reinterpret_cast<uintptr_t>(result.const_data_ptr()) % 16 == 0;
  return fits ? result : result.clone();
}

template <class Launches>
std::tuple<Tensor, Tensor> run_forward(const Launches& launches, const GatedGnnArgs& args,
                                       const Tensor& x, const Tensor& plan, int64_t steps,
                                       bool save) {
  const Tensor rows = x.contiguous();
  const Tensor out = empty_like(rows);
  const auto options = x.options().dtype(args.compute);
  // Without gradients two records take turns.
  const Tensor record = empty({save ? 2 * steps : 2, args.num_nodes, args.record.width}, options);
  if (rows.numel() > 0) {
    const Problem problem = problem_of(args, x, plan, steps);
    if (args.compute == kFloat) {
      forward<float>(launches, args, problem, rows, plan, record, out);
    } else {
      forward<double>(launches, args, problem, rows, plan, record, out);
    }
  }
  return {out, save ? record : empty({0}, options)};
}

template <class Launches>
std::tuple<Tensor, std::vector<Tensor>> run_backward(const Launches& launches,
                                                     const GatedGnnArgs& args, const Tensor& grad,
                                                     const Tensor& x, const Tensor& plan,
                                                     const Tensor& saved, int64_t steps) {
  const Tensor d = grad.contiguous(), rows = x.contiguous(), record = aligned(saved);
  const Tensor grad_x = empty_like(rows);
  std::vector<Tensor> grad_weights;
  for (const Tensor& weight : args.weights) {
    grad_weights.push_back(rows.numel() == 0 ? zeros_like(weight) : empty_like(weight));
  }
  if (rows.numel() > 0) {
    const Problem problem = problem_of(args, x, plan, steps);
    if (args.compute == kFloat) {
      backward<float>(launches, args, problem, d, rows, plan, record, grad_x, grad_weights);
    } else {
      backward<double>(launches, args, problem, d, rows, plan, record, grad_x, grad_weights);
    }
  }
  return {grad_x, grad_weights};
}

}  // namespace ghn::cuda
