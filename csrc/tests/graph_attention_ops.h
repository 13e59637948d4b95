// The CPU ops of attention within graphs.
#pragma once

#include <tuple>

#include "ops.h"

namespace ghn {
inline constexpr tests::Op<std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, const at::Tensor&,
                                                              at::IntArrayRef, const at::Tensor&)>
    graph_attention_cpu{"ghn_fast::graph_attention_forward"};
inline constexpr tests::Op<std::tuple<at::Tensor, at::Tensor>(
    const at::Tensor&, const at::Tensor&, const at::Tensor&, at::IntArrayRef, const at::Tensor&,
    const at::Tensor&, const at::Tensor&)>
    graph_attention_backward_cpu{"ghn_fast::graph_attention_backward"};
}  // namespace ghn
