// Memory of CPU tensors that is kept when they are freed.
#pragma once

#include <cstdint>

namespace ghn {

// From now on torch takes the memory of larger CPU tensors from free lists, for as long as the
// process lives. May be called any number of times.
void cache_cpu_memory();

struct CachedMemory {
  int64_t in_use, kept;  // bytes
};

CachedMemory cached_cpu_memory();

}  // namespace ghn
