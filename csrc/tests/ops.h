// The ops as torch's dispatcher has them, and tensors on both sides of the stable ABI.
#pragma once

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <tuple>
#include <vector>

#include "../common/tensor.h"

namespace ghn::tests {

// The op of a name, with the C++ types of its signature.
template <class Signature>
class Op;

template <class Result, class... Arguments>
class Op<Result(Arguments...)> {
 public:
  explicit constexpr Op(const char* name) : name_(name) {}

  Result operator()(Arguments... arguments) const {
    const auto found = c10::Dispatcher::singleton().findSchemaOrThrow(name_, "");
    return found.typed<Result(Arguments...)>().call(arguments...);
  }

 private:
  const char* name_;
};

// A handle of the stable ABI is the address of a tensor.
inline Tensor ours(const at::Tensor& tensor) {
  return Tensor(reinterpret_cast<AtenTensorHandle>(new at::Tensor(tensor)));
}
inline std::vector<Tensor> ours(const std::vector<at::Tensor>& tensors) {
  std::vector<Tensor> result;
  for (const at::Tensor& tensor : tensors) result.push_back(ours(tensor));
  return result;
}

inline at::Tensor torchs(const Tensor& tensor) {
  return *reinterpret_cast<at::Tensor*>(tensor.get());
}
inline std::vector<at::Tensor> torchs(const std::vector<Tensor>& tensors) {
  std::vector<at::Tensor> result;
  for (const Tensor& tensor : tensors) result.push_back(torchs(tensor));
  return result;
}
template <class A, class B>
auto torchs(const std::tuple<A, B>& both) {
  return std::tuple(torchs(std::get<0>(both)), torchs(std::get<1>(both)));
}

}  // namespace ghn::tests
