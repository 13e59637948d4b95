// The ops for images as functions, for other C++ code.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace ghn {

// See ghn_fast/ops/batch_norm_act.py; autograd differentiates it.
at::Tensor batch_norm_act(const at::Tensor& x, const std::optional<at::Tensor>& weight,
                          const std::optional<at::Tensor>& bias, double eps, bool relu);

// See ghn_fast/ops/depthwise_conv2d.py; autograd differentiates it.
at::Tensor depthwise_conv2d(const at::Tensor& x, const at::Tensor& weight, at::IntArrayRef stride,
                            at::IntArrayRef padding, at::IntArrayRef dilation);

// The parts of both, without autograd; see ops.cpp.
std::tuple<at::Tensor, at::Tensor, at::Tensor> batch_norm_act_cpu(
    const at::Tensor& x, const std::optional<at::Tensor>& weight,
    const std::optional<at::Tensor>& bias, double eps, bool relu);
std::tuple<at::Tensor, at::Tensor, at::Tensor> batch_norm_act_backward_cpu(
    const at::Tensor& grad, const at::Tensor& x, const std::optional<at::Tensor>& weight,
    const std::optional<at::Tensor>& bias, const at::Tensor& mean, const at::Tensor& invstd,
    bool relu);
at::Tensor depthwise_conv2d_cpu(const at::Tensor& x, const at::Tensor& weight,
                                at::IntArrayRef stride, at::IntArrayRef padding,
                                at::IntArrayRef dilation);
at::Tensor depthwise_conv2d_grad_input_cpu(const at::Tensor& grad, const at::Tensor& weight,
                                           int64_t height, int64_t width, at::IntArrayRef stride,
                                           at::IntArrayRef padding, at::IntArrayRef dilation);
at::Tensor depthwise_conv2d_grad_weight_cpu(const at::Tensor& grad, const at::Tensor& x,
                                            int64_t height, int64_t width, at::IntArrayRef stride,
                                            at::IntArrayRef padding, at::IntArrayRef dilation);

}  // namespace ghn
