// A number by which contents of memory are known again.
#pragma once

#include <cstdint>

namespace ghn {

struct ContentHash {
  uint64_t low, high;
  int64_t count;

  bool operator==(const ContentHash&) const = default;
};

// Of `count` numbers. Two contents have the same hash with a probability below 2^-60, whoever chose
// them: the keys are drawn at random once per process. Tens of gigabytes a second.
ContentHash content_hash(const int32_t* data, int64_t count);

}  // namespace ghn
