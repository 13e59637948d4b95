// Checks of arguments; the messages name the argument, what it got and what it needs.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

#include "tensor.h"

namespace ghn {
namespace detail {

template <class T>
void print(std::ostream& to, const T& part) {
  to << part;
}
void print(std::ostream& to, IntArrayRef numbers);
void print(std::ostream& to, const Device& device);
inline void print(std::ostream& to, ScalarType type) { to << torch::headeronly::toString(type); }
inline void print(std::ostream& to, bool value) { to << (value ? "true" : "false"); }

}  // namespace detail

// Becomes ValueError in Python. The stable ABI hands on the errors of the standard library alone,
// which have none for a type; public functions have checked types before and raise TypeError.
template <class... Parts>
[[noreturn, gnu::noinline, gnu::cold]] void refuse(const Parts&... parts) {
  std::ostringstream text;
  (detail::print(text, parts), ...);
  throw std::invalid_argument(text.str());
}

#define GHN_CHECK(condition, ...)  \
  do {                             \
    if (!(condition)) [[unlikely]] \
      ::ghn::refuse(__VA_ARGS__);  \
  } while (false)

inline void check_dtype(const Tensor& tensor, ScalarType dtype, const char* name) {
  GHN_CHECK(tensor.scalar_type() == dtype, name, ": got ", tensor.scalar_type(), ", needs ", dtype);
}

inline void check_device(const Tensor& tensor, const Device& device, const char* name) {
  GHN_CHECK(tensor.device() == device, name, ": got a tensor on ", tensor.device(),
            ", needs it on ", device);
}

inline void check_shape(const Tensor& tensor, IntArrayRef shape, const char* name) {
  GHN_CHECK(tensor.sizes().equals(shape), name, ": got shape ", tensor.sizes(), ", needs ", shape);
}

}  // namespace ghn
