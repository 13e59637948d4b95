// What the tests of the C++ sources say and count: one line for each check, and how many failed.
#pragma once

#include <c10/util/Exception.h>

#include <cstdio>
#include <stdexcept>

namespace ghn::tests {

inline int failures = 0;

inline void check(bool fine, const char* what) {
  std::printf("%s: %s\n", fine ? "ok" : "FAILED", what);
  failures += fine ? 0 : 1;
}

// Whether an op raises one of torch's errors, or one of ours.
template <class Run>
bool refused(const Run& run) {
  try {
    run();
  } catch (const c10::Error&) {
    return true;
  } catch (const std::invalid_argument&) {
    return true;
  }
  return false;
}

// What main returns.
inline int exit_status() { return failures == 0 ? 0 : 1; }

}  // namespace ghn::tests
