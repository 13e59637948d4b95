// The CPU ops of attention within graphs.
#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

namespace ghn {
std::tuple<at::Tensor, at::Tensor> graph_attention_cpu(const at::Tensor& qkv,
                                                       const at::Tensor& codes,
                                                       at::IntArrayRef offsets,
                                                       const at::Tensor& table);
std::tuple<at::Tensor, at::Tensor> graph_attention_backward_cpu(
    const at::Tensor& grad, const at::Tensor& qkv, const at::Tensor& codes,
    at::IntArrayRef offsets, const at::Tensor& table, const at::Tensor& out,
    const at::Tensor& logsum);
}  // namespace ghn
