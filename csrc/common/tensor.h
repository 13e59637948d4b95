// Tensors as the ops use them, on LibTorch's stable ABI: a file that is compiled with one torch
// runs with every later one. What is here looks like ATen, as far as the ops need it; nothing else
// of torch is used but by name, through its dispatcher.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>
#include <torch/csrc/stable/device.h>
#include <torch/csrc/stable/stableivalue_conversions.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/HeaderOnlyArrayRef.h>

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace ghn {

using torch::headeronly::ScalarType;
using torch::stable::Device;
using torch::stable::DeviceType;
using BFloat16 = torch::headeronly::BFloat16;
using Half = torch::headeronly::Half;
using IntArrayRef = torch::headeronly::IntHeaderOnlyArrayRef;

inline constexpr ScalarType kByte = ScalarType::Byte, kShort = ScalarType::Short,
                            kInt = ScalarType::Int, kLong = ScalarType::Long,
                            kHalf = ScalarType::Half, kBFloat16 = ScalarType::BFloat16,
                            kFloat = ScalarType::Float, kDouble = ScalarType::Double;

inline const Device kCPU{DeviceType::CPU};

namespace detail {

// Raises what torch said, as far as it tells: from 2.13 on. Before that it is on standard error.
[[noreturn]] void fail_in_torch(const char* what);

inline void check(AOTITorchError status, const char* what) {
  if (status != AOTI_TORCH_SUCCESS) [[unlikely]]
    fail_in_torch(what);
}

}  // namespace detail

// What a new tensor is of.
struct TensorOptions {
  ScalarType type = kFloat;
  Device where = kCPU;

  TensorOptions(ScalarType type, const Device& where = kCPU) : type(type), where(where) {}
  TensorOptions dtype(ScalarType other) const { return {other, where}; }
};

class Tensor {
 public:
  Tensor() = default;  // undefined
  // Takes the handle over.
  explicit Tensor(AtenTensorHandle handle) : handle_(handle, &aoti_torch_delete_tensor_object) {}

  AtenTensorHandle get() const { return handle_.get(); }
  bool defined() const { return handle_ != nullptr; }

  int64_t dim() const { return read<int64_t>(&aoti_torch_get_dim, "dim"); }
  int64_t numel() const { return read<int64_t>(&aoti_torch_get_numel, "numel"); }
  bool is_contiguous() const { return read<bool>(&aoti_torch_is_contiguous, "is_contiguous"); }
  IntArrayRef sizes() const {
    return {read<int64_t*>(&aoti_torch_get_sizes, "sizes"), size_t(dim())};
  }
  IntArrayRef strides() const {
    return {read<int64_t*>(&aoti_torch_get_strides, "strides"), size_t(dim())};
  }
  // Of a dimension that is there.
  int64_t size(int64_t dim) const { return read<int64_t*>(&aoti_torch_get_sizes, "sizes")[dim]; }

  ScalarType scalar_type() const {
    const auto type = read<int32_t>(&aoti_torch_get_dtype, "dtype");
    return torch::stable::detail::to<ScalarType>(torch::stable::detail::from(type));
  }
  Device device() const {
    const auto type = read<int32_t>(&aoti_torch_get_device_type, "device");
    const auto index = read<int32_t>(&aoti_torch_get_device_index, "device");
    const StableIValue boxed = torch::stable::detail::from(type);
    return {torch::stable::detail::to<DeviceType>(boxed), index};
  }
  int32_t get_device() const { return read<int32_t>(&aoti_torch_get_device_index, "device"); }
  bool is_cpu() const {
    return read<int32_t>(&aoti_torch_get_device_type, "device") == aoti_torch_device_type_cpu();
  }
  bool is_cuda() const {
    return read<int32_t>(&aoti_torch_get_device_type, "device") == aoti_torch_device_type_cuda();
  }
  TensorOptions options() const { return {scalar_type(), device()}; }

  const void* const_data_ptr() const {
    return read<const void*>(&torch_get_const_data_ptr, "const_data_ptr");
  }
  void* data_ptr() const { return read<void*>(&torch_get_mutable_data_ptr, "data_ptr"); }
  // Of a tensor whose type has been checked.
  template <class T>
  const T* const_data_ptr() const {
    return static_cast<const T*>(const_data_ptr());
  }
  template <class T>
  T* data_ptr() const {
    return static_cast<T*>(data_ptr());
  }

  Tensor contiguous() const;
  Tensor clone() const;  // contiguous
  Tensor to(ScalarType type) const;
  Tensor to(const Device& device, bool non_blocking) const;  // always a copy
  Tensor cpu() const;
  Tensor pin_memory() const;
  void copy_(const Tensor& from) const;

  Tensor view(IntArrayRef sizes) const;
  Tensor t() const;
  Tensor sum(IntArrayRef dims) const;

  bool is_inference() const;
  int64_t version() const;  // of a tensor that is none of inference mode's

 private:
  template <class Value, class Function>
  Value read(Function function, const char* what) const {
    Value value;
    detail::check(function(handle_.get(), &value), what);
    return value;
  }

  std::shared_ptr<AtenTensorOpaque> handle_;
};

using TensorList = std::span<const Tensor>;

// Contiguous, its values unset.
Tensor empty(IntArrayRef sizes, const TensorOptions& options);
inline Tensor empty_like(const Tensor& like) { return empty(like.sizes(), like.options()); }
Tensor zeros(IntArrayRef sizes, const TensorOptions& options);
inline Tensor zeros_like(const Tensor& like) { return zeros(like.sizes(), like.options()); }
Tensor operator*(const Tensor& a, const Tensor& b);

}  // namespace ghn
