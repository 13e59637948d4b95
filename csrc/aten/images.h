// What the ops on images in channels_last have in common.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/BFloat16.h>

#include "checks.h"

namespace ghn {

inline bool is_channels_last(const at::Tensor& x) {
  return x.is_contiguous(at::MemoryFormat::ChannelsLast);
}

// Whether the ops compute in the type of a tensor.
inline bool has_image_type(const at::Tensor& x) {
  return x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16;
}

inline void check_images(const at::Tensor& tensor, const char* name) {
  check_device(tensor, at::kCPU, name);
  TORCH_CHECK_TYPE(has_image_type(tensor), name, ": got ", tensor.scalar_type(),
                   ", needs float32 or bfloat16");
  TORCH_CHECK_VALUE(tensor.dim() == 4, name, ": got shape ", tensor.sizes(),
                    ", needs (N, C, H, W)");
}

inline at::Tensor channels_last(at::IntArrayRef sizes, const at::Tensor& like) {
  return at::empty(sizes, like.options().memory_format(at::MemoryFormat::ChannelsLast));
}

template <class F>
void with_type(at::ScalarType type, F f) {
  type == at::kFloat ? f(float{}) : f(c10::BFloat16{});
}

}  // namespace ghn
