// Checks of arguments; the messages name the argument, what it got and what it needs.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

namespace ghn {

inline void check_dtype(const at::Tensor& tensor, at::ScalarType dtype, const char* name) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == dtype, name, ": got ", tensor.scalar_type(), ", needs ",
                   dtype);
}

inline void check_device(const at::Tensor& tensor, const at::Device& device, const char* name) {
  TORCH_CHECK_VALUE(tensor.device() == device, name, ": got a tensor on ", tensor.device(),
                    ", needs it on ", device);
}

inline void check_shape(const at::Tensor& tensor, at::IntArrayRef shape, const char* name) {
  TORCH_CHECK_VALUE(tensor.sizes() == shape, name, ": got shape ", tensor.sizes(), ", needs ",
                    shape);
}

}  // namespace ghn
