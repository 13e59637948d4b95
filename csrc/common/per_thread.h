// Memory that a thread keeps from call to call.
#pragma once

#include <memory>

namespace ghn {

// On the heap: compilers put the address of a thread_local object wherever a reference to it is
// used, and looking that up in an inner loop costs more than the loop.
template <class T>
T& per_thread() {
  thread_local const std::unique_ptr<T> memory = std::make_unique<T>();
  return *memory;
}

}  // namespace ghn
