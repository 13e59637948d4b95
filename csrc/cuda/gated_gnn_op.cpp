// The gated GNN on CUDA as an op: checks, memory, launches, and the gradients of the weights as a
// few matrix products over what the backward kernel leaves per node.
#include <ATen/core/Tensor.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <tuple>

#include "../common/gated_gnn_args.h"
#include "gated_gnn.h"

namespace ghn::cuda {
namespace {

Shape shape_of(const GatedGnnArgs& args, const at::Tensor& plan, int64_t steps) {
  Shape shape;
  shape.record = args.record;
  shape.num_nodes = args.num_nodes;
  shape.channels = args.channels;
  shape.hidden[0] = args.hidden[0], shape.hidden[1] = args.hidden[1];
  shape.plan_size = plan.numel();
  shape.sweeps = int32_t(2 * steps);
  return shape;
}

template <class T>
at::Tensor pack(const GatedGnnArgs& args, const Shape& shape, bool backward,
                const at::TensorOptions& options, cudaStream_t stream) {
  WeightPointers<T> from{};
  for (int64_t k = 0; k < args.messages; ++k) {
    from.first[k] = args.mlp(k, 0).const_data_ptr<T>();
    from.first_b[k] = args.mlp(k, 1).const_data_ptr<T>();
    from.second[k] = args.mlp(k, 2).const_data_ptr<T>();
    from.second_b[k] = args.mlp(k, 3).const_data_ptr<T>();
  }
  from.ih = args.gru(0).const_data_ptr<T>(), from.hh = args.gru(1).const_data_ptr<T>();
  from.ih_b = args.gru(2).const_data_ptr<T>(), from.hh_b = args.gru(3).const_data_ptr<T>();
  at::Tensor packed = at::empty({packed_size(args.record)}, options);
  C10_CUDA_CHECK(pack_weights<T>(shape, from, backward, packed.data_ptr<T>(), stream));
  return packed;
}

template <class T>
void forward(const GatedGnnArgs& args, const Shape& shape, const at::Tensor& x,
             const at::Tensor& plan, at::Tensor& record, at::Tensor& out) {
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const at::Tensor packed = pack<T>(args, shape, false, x.options(), stream);
  ForwardArgs<T> launch{shape,
                        x.const_data_ptr<T>(),
                        plan.const_data_ptr<int32_t>(),
                        packed.const_data_ptr<T>(),
                        record.data_ptr<T>(),
                        int32_t(record.size(0)),
                        out.data_ptr<T>()};
  C10_CUDA_CHECK(launch_forward<T>(launch, x.get_device(), stream));
}

template <class T>
void backward(const GatedGnnArgs& args, const Shape& shape, const at::Tensor& grad,
              const at::Tensor& x, const at::Tensor& plan, const at::Tensor& record,
              at::Tensor& factors, at::Tensor& grad_x) {
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const at::Tensor packed = pack<T>(args, shape, true, x.options(), stream);
  at::Tensor d_rows = at::empty({2, args.num_nodes, args.record.c}, x.options());
  BackwardArgs<T> launch{shape,
                         grad.const_data_ptr<T>(),
                         x.const_data_ptr<T>(),
                         plan.const_data_ptr<int32_t>(),
                         packed.const_data_ptr<T>(),
                         record.const_data_ptr<T>(),
                         factors.data_ptr<T>(),
                         d_rows.data_ptr<T>(),
                         d_rows.data_ptr<T>() + args.num_nodes * args.record.c,
                         grad_x.data_ptr<T>()};
  C10_CUDA_CHECK(launch_backward<T>(launch, x.get_device(), stream));
}

// Columns [column, column + width) of an array with rows of `row_width`, which lies behind
// `before` elements per node in every sweep: (sweeps, N, width).
at::Tensor columns(const at::Tensor& arrays, int64_t num_nodes, int64_t before, int64_t row_width,
                   int64_t column, int64_t width) {
  return arrays.view({arrays.size(0), -1})
      .narrow(1, before * num_nodes, row_width * num_nodes)
      .view({arrays.size(0), num_nodes, row_width})
      .narrow(2, column, width);
}

// sum over sweeps and nodes of a^T b
at::Tensor product(const at::Tensor& a, const at::Tensor& b) {
  return at::bmm(a.transpose(1, 2), b).sum(0);
}

std::vector<at::Tensor> weight_gradients(const GatedGnnArgs& args, const at::Tensor& x,
                                         const at::Tensor& saved, const at::Tensor& factors) {
  const Record& r = args.record;
  const int64_t n = args.num_nodes, c = args.channels;
  auto field = [&](int64_t before, int64_t row, int64_t column, int64_t width) {
    return columns(saved, n, before, row, column, width);
  };
  auto factor = [&](int64_t before, int64_t row, int64_t column, int64_t width) {
    return columns(factors, n, before, row, column, width);
  };
  const at::Tensor state = field(0, r.c, 0, c), message = field(r.c, r.c, 0, c);
  const int64_t sweeps = saved.size(0);
  const at::Tensor before = at::empty({sweeps, n, c}, x.options());
  before.select(0, 0).copy_(x);
  before.narrow(0, 1, sweeps - 1).copy_(state.narrow(0, 0, sweeps - 1));

  std::vector<at::Tensor> result;
  for (int64_t k = 0; k < args.messages; ++k) {
    const int64_t h = args.hidden[k], shift = k == 0 ? 0 : r.h[0];
    const at::Tensor d_hidden = factor(4 * r.c, r.hidden, shift, h);
    const at::Tensor d_sent = factor(4 * r.c + r.hidden, r.messages * r.c, k * r.c, c);
    const at::Tensor hidden = field(6 * r.c, r.hidden, shift, h);
    result.push_back(product(d_hidden, state));
    result.push_back(d_hidden.sum({0, 1}));
    result.push_back(product(d_sent, hidden));
    result.push_back(d_sent.sum({0, 1}));
  }
  // Gradients lie as n r z hn; weight_ih takes r z n, weight_hh takes r z hn.
  const int64_t of_message[3] = {1, 2, 0}, of_state[3] = {1, 2, 3};
  const at::Tensor ih = at::empty({3 * c, c}, x.options()), hh = at::empty_like(ih);
  const at::Tensor ih_b = at::empty({3 * c}, x.options()), hh_b = at::empty_like(ih_b);
  for (int64_t gate = 0; gate < 3; ++gate) {
    const at::Tensor a = factor(0, 4 * r.c, of_message[gate] * r.c, c);
    const at::Tensor b = factor(0, 4 * r.c, of_state[gate] * r.c, c);
    ih.narrow(0, gate * c, c).copy_(product(a, message));
    hh.narrow(0, gate * c, c).copy_(product(b, before));
    ih_b.narrow(0, gate * c, c).copy_(a.sum({0, 1}));
    hh_b.narrow(0, gate * c, c).copy_(b.sum({0, 1}));
  }
  result.insert(result.end(), {ih, hh, ih_b, hh_b});
  return result;
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> gated_gnn_forward_cuda(const at::Tensor& x,
                                                          const at::Tensor& plan,
                                                          at::TensorList weights, int64_t steps,
                                                          bool save) {
  const GatedGnnArgs args = gated_gnn_args(x, plan, weights, steps);
  const c10::cuda::CUDAGuard guard(x.device());
  const at::Tensor rows = x.contiguous();
  at::Tensor out = at::empty_like(rows);
  // Without gradients two records take turns.
  at::Tensor record =
      at::empty({save ? 2 * steps : 2, args.num_nodes, args.record.width}, x.options());
  if (rows.numel() > 0) {
    const Shape shape = shape_of(args, plan, steps);
    if (x.scalar_type() == at::kFloat) {
      forward<float>(args, shape, rows, plan, record, out);
    } else {
      forward<double>(args, shape, rows, plan, record, out);
    }
  }
  return {out, save ? record : at::empty({0}, x.options())};
}

std::tuple<at::Tensor, std::vector<at::Tensor>> gated_gnn_backward_cuda(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& plan, at::TensorList weights,
    const at::Tensor& saved, int64_t steps) {
  const GatedGnnArgs args = gated_gnn_args(x, plan, weights, steps);
  check_dtype(grad, x.scalar_type(), "grad");
  check_device(grad, x.device(), "grad");
  check_shape(grad, x.sizes(), "grad");
  check_dtype(saved, x.scalar_type(), "saved");
  check_device(saved, x.device(), "saved");
  check_shape(saved, {2 * steps, args.num_nodes, args.record.width}, "saved");
  const c10::cuda::CUDAGuard guard(x.device());
  const at::Tensor d = grad.contiguous(), rows = x.contiguous(), record = saved.contiguous();
  at::Tensor grad_x = at::empty_like(rows);
  at::Tensor factors =
      at::empty({2 * steps, args.num_nodes, factors_width(args.record)}, x.options());
  if (rows.numel() > 0) {
    const Shape shape = shape_of(args, plan, steps);
    if (x.scalar_type() == at::kFloat) {
      backward<float>(args, shape, d, rows, plan, record, factors, grad_x);
    } else {
      backward<double>(args, shape, d, rows, plan, record, factors, grad_x);
    }
    return {grad_x, weight_gradients(args, rows, record, factors)};
  }
  std::vector<at::Tensor> nothing;
  for (const at::Tensor& weight : args.weights) nothing.push_back(at::zeros_like(weight));
  return {grad_x, nothing};
}

TORCH_LIBRARY_IMPL(ghn_fast, CUDA, m) {
  m.impl("gated_gnn_forward", &gated_gnn_forward_cuda);
  m.impl("gated_gnn_backward", &gated_gnn_backward_cuda);
}

}  // namespace ghn::cuda
