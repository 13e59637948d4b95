// Loops over torch's own threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <exception>

#include "tensor.h"

namespace ghn {

inline int64_t num_threads() {
  uint32_t threads = 1;
  detail::check(torch_get_num_threads(&threads), "get_num_threads");
  return std::max<int64_t>(threads, 1);
}

// f(begin, end) for pieces of the range of at least `grain`. What one of them throws is thrown
// here: no exception may pass through the ABI.
template <class F>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const F& f) {
  struct Call {
    const F& f;
    std::atomic<bool> failed = false;
    std::exception_ptr error = nullptr;
  } call{f};
  const auto run = [](int64_t first, int64_t last, void* context) {
    auto& of = *static_cast<Call*>(context);
    try {
      of.f(first, last);
    } catch (...) {
      if (!of.failed.exchange(true)) of.error = std::current_exception();
    }
  };
  detail::check(torch_parallel_for(begin, end, grain, run, &call), "parallel_for");
  if (call.failed) std::rethrow_exception(call.error);
}

}  // namespace ghn
