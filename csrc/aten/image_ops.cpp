// Gradients of the ops for images. In C++, so that a backward pass through them takes no lock of
// Python: networks run side by side, and there are some hundred of these ops in each.
#include "image_ops.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <tuple>

namespace ghn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Optional = std::optional<at::Tensor>;
using Three = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

Optional optional(const at::Tensor& tensor) {
  return tensor.defined() ? Optional(tensor) : std::nullopt;
}

// An op by its name and type; looked up once.
template <class F>
c10::TypedOperatorHandle<F> op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<F>();
}

Three batch_norm_forward(const at::Tensor& x, const Optional& weight, const Optional& bias,
                         double eps, bool relu) {
  using F = Three(const at::Tensor&, const Optional&, const Optional&, double, bool);
  static const auto call = op<F>("ghn_fast::batch_norm_act");
  return call.call(x, weight, bias, eps, relu);
}

Three batch_norm_backward(const at::Tensor& grad, const at::Tensor& x, const Optional& weight,
                          const Optional& bias, const at::Tensor& mean, const at::Tensor& invstd,
                          bool relu) {
  using F = Three(const at::Tensor&, const at::Tensor&, const Optional&, const Optional&,
                  const at::Tensor&, const at::Tensor&, bool);
  static const auto call = op<F>("ghn_fast::batch_norm_act_backward");
  return call.call(grad, x, weight, bias, mean, invstd, relu);
}

// The type of a gradient is that of what it is for; an undefined one where nothing is.
at::Tensor as(const at::Tensor& gradient, const at::Tensor& like) {
  return like.defined() ? gradient.to(like.scalar_type()) : at::Tensor();
}

struct BatchNormAct : torch::autograd::Function<BatchNormAct> {
  static variable_list forward(AutogradContext* ctx, const at::Tensor& x, const Optional& weight,
                               const Optional& bias, double eps, bool relu) {
    const at::AutoDispatchBelowADInplaceOrView below;
    auto [out, mean, invstd] = batch_norm_forward(x, weight, bias, eps, relu);
    ctx->saved_data["relu"] = relu;
    ctx->set_materialize_grads(false);
    ctx->save_for_backward({x, weight.value_or(at::Tensor()), bias.value_or(at::Tensor()), mean,
                            invstd});
    ctx->mark_non_differentiable({mean, invstd});
    return {out, mean, invstd};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    if (!grads[0].defined()) return variable_list(5);
    const variable_list saved = ctx->get_saved_variables();
    const bool relu = ctx->saved_data["relu"].toBool();
    // Without the ReLU, the shift does not matter.
    const Optional shift = relu ? optional(saved[2]) : std::nullopt;
    auto [x, weight, bias] =
        batch_norm_backward(grads[0], saved[0], optional(saved[1]), shift, saved[3], saved[4], relu);
    return {x, as(weight, saved[1]), as(bias, saved[2]), at::Tensor(), at::Tensor()};
  }
};

Three batch_norm_act_autograd(const at::Tensor& x, const Optional& weight, const Optional& bias,
                              double eps, bool relu) {
  const variable_list found = BatchNormAct::apply(x, weight, bias, eps, relu);
  return {found[0], found[1], found[2]};
}

at::Tensor depthwise_forward(const at::Tensor& x, const at::Tensor& weight, at::IntArrayRef stride,
                             at::IntArrayRef padding, at::IntArrayRef dilation) {
  using F = at::Tensor(const at::Tensor&, const at::Tensor&, at::IntArrayRef, at::IntArrayRef,
                       at::IntArrayRef);
  static const auto call = op<F>("ghn_fast::depthwise_conv2d");
  return call.call(x, weight, stride, padding, dilation);
}

// Of the input, or of the weight: the other operand, and the size of what the gradient is for.
at::Tensor depthwise_backward(bool of_input, const at::Tensor& grad, const at::Tensor& other,
                              const std::vector<c10::SymInt>& size, at::IntArrayRef stride,
                              at::IntArrayRef padding, at::IntArrayRef dilation) {
  using F = at::Tensor(const at::Tensor&, const at::Tensor&, c10::SymInt, c10::SymInt,
                       at::IntArrayRef, at::IntArrayRef, at::IntArrayRef);
  static const auto input = op<F>("ghn_fast::depthwise_conv2d_grad_input");
  static const auto weight = op<F>("ghn_fast::depthwise_conv2d_grad_weight");
  return (of_input ? input : weight)
      .call(grad, other, size[0], size[1], stride, padding, dilation);
}

struct DepthwiseConv2d : torch::autograd::Function<DepthwiseConv2d> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight,
                            std::vector<int64_t> stride, std::vector<int64_t> padding,
                            std::vector<int64_t> dilation) {
    const at::AutoDispatchBelowADInplaceOrView below;
    ctx->saved_data["stride"] = stride;
    ctx->saved_data["padding"] = padding;
    ctx->saved_data["dilation"] = dilation;
    ctx->set_materialize_grads(false);
    ctx->save_for_backward({x, weight});
    return depthwise_forward(x, weight, stride, padding, dilation);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list result(5);
    if (!grads[0].defined()) return result;
    const variable_list saved = ctx->get_saved_variables();
    const auto numbers = [&](const char* name) { return ctx->saved_data[name].toIntVector(); };
    const auto stride = numbers("stride"), padding = numbers("padding");
    const auto dilation = numbers("dilation");
    for (const size_t i : {0, 1}) {
      if (!ctx->needs_input_grad(i)) continue;
      const std::vector<c10::SymInt> size{saved[i].sym_size(2), saved[i].sym_size(3)};
      result[i] = depthwise_backward(i == 0, grads[0], saved[1 - i], size, stride, padding,
                                     dilation);
    }
    return result;
  }
};

at::Tensor depthwise_conv2d_autograd(const at::Tensor& x, const at::Tensor& weight,
                                     at::IntArrayRef stride, at::IntArrayRef padding,
                                     at::IntArrayRef dilation) {
  return DepthwiseConv2d::apply(x, weight, stride.vec(), padding.vec(), dilation.vec());
}

}  // namespace

at::Tensor batch_norm_act(const at::Tensor& x, const Optional& weight, const Optional& bias,
                          double eps, bool relu) {
  return std::get<0>(batch_norm_forward(x, weight, bias, eps, relu));
}

at::Tensor depthwise_conv2d(const at::Tensor& x, const at::Tensor& weight, at::IntArrayRef stride,
                            at::IntArrayRef padding, at::IntArrayRef dilation) {
  return depthwise_forward(x, weight, stride, padding, dilation);
}

TORCH_LIBRARY_IMPL(ghn_fast, Autograd, m) {
  m.impl("batch_norm_act", &batch_norm_act_autograd);
  m.impl("depthwise_conv2d", &depthwise_conv2d_autograd);
}

}  // namespace ghn
