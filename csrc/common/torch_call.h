// Values on their way through torch's dispatcher: how an op of ours is registered, and how one of
// torch's is called by its name.
#pragma once

#include <torch/csrc/stable/library.h>

#include <tuple>
#include <type_traits>
#include <utility>

#include "tensor.h"

namespace ghn {
namespace detail {

// As which type an argument is kept during a call; by its parameter's type.
template <class T>
struct Kept {
  using type = T;
};
template <>
struct Kept<TensorList> {
  using type = std::vector<Tensor>;
};
template <>
struct Kept<IntArrayRef> {
  using type = std::vector<int64_t>;
};
template <class T>
using kept_t = typename Kept<std::remove_cvref_t<T>>::type;

// A value for the dispatcher, which takes it over; and back.
template <class T>
struct Boxed {
  static StableIValue to(const T& value) { return torch::stable::detail::from(value); }
  static T from(StableIValue value) { return torch::stable::detail::to<T>(value); }
};

template <>
struct Boxed<Tensor> {
  static StableIValue to(const Tensor& tensor) {
    AtenTensorHandle handle = nullptr;
    check(aoti_torch_new_tensor_handle(tensor.get(), &handle), "a result");
    return torch::stable::detail::from(handle);
  }
  static Tensor from(StableIValue value) {
    return Tensor(torch::stable::detail::to<AtenTensorHandle>(value));
  }
};

template <>
struct Boxed<std::optional<Tensor>> {
  static std::optional<Tensor> from(StableIValue value) {
    const auto found = torch::stable::detail::to<std::optional<torch::stable::Tensor>>(value);
    if (!found) return std::nullopt;
    AtenTensorHandle handle = nullptr;
    check(aoti_torch_new_tensor_handle(found->get(), &handle), "an argument");
    return Tensor(handle);
  }
};

template <>
struct Boxed<std::vector<Tensor>> {
  static StableIValue to(const std::vector<Tensor>& tensors) {
    StableListHandle list = nullptr;
    check(torch_new_list_reserve_size(tensors.size(), &list), "a list");
    for (const Tensor& tensor : tensors) {
      check(torch_list_push_back(list, Boxed<Tensor>::to(tensor)), "a list");
    }
    return torch::stable::detail::from(list);
  }
  static std::vector<Tensor> from(StableIValue value) {
    const auto list = torch::stable::detail::to<StableListHandle>(value);
    size_t size = 0;
    check(torch_list_size(list, &size), "a list");
    std::vector<Tensor> result;
    result.reserve(size);
    for (size_t i = 0; i < size; ++i) {
      StableIValue item = 0;
      check(torch_list_get_item(list, i, &item), "a list");
      result.push_back(Boxed<Tensor>::from(item));
    }
    check(torch_delete_list(list), "a list");
    return result;
  }
};

template <class... Results>
void put_results(StableIValue* stack, const std::tuple<Results...>& results) {
  [&]<size_t... I>(std::index_sequence<I...>) {
    ((stack[I] = Boxed<Results>::to(std::get<I>(results))), ...);
  }(std::index_sequence_for<Results...>{});
}
template <class Result>
void put_results(StableIValue* stack, const Result& result) {
  stack[0] = Boxed<Result>::to(result);
}

template <auto op>
struct Op;

template <class Result, class... Arguments, Result (*op)(Arguments...)>
struct Op<op> {
  static void run(StableIValue* stack, uint64_t, uint64_t) {
    [&]<size_t... I>(std::index_sequence<I...>) {
      std::tuple<kept_t<Arguments>...> kept{Boxed<kept_t<Arguments>>::from(stack[I])...};
      if constexpr (std::is_void_v<Result>) {
        op(std::get<I>(kept)...);
      } else {
        put_results(stack, op(std::get<I>(kept)...));
      }
    }(std::index_sequence_for<Arguments...>{});
  }
};

}  // namespace detail

// A function as STABLE_TORCH_LIBRARY_IMPL takes it: m.impl("name", boxed<&function>).
template <auto op>
inline constexpr auto boxed = &detail::Op<op>::run;

// A call of one of torch's ops, which has to be as the public interface of 2.11 has it.
template <class Result = Tensor, class... Arguments>
Result call_torch(const char* name, const char* overload, const Arguments&... arguments) {
  StableIValue stack[] = {detail::Boxed<Arguments>::to(arguments)...};
  detail::check(torch_call_dispatcher(name, overload, stack, TORCH_ABI_VERSION), name);
  return detail::Boxed<Result>::from(stack[0]);
}

}  // namespace ghn
