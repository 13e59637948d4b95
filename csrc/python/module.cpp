// The Python module ghn_fast._C. Importing it registers the ops; it holds what it was compiled for
// (the version of torch, CUDA or not, threads on the CPU or not), and what works on Python objects.
#include <pybind11/pybind11.h>
#include <torch/version.h>

#include <utility>

#include "../cpu/caching_allocator.h"
#include "structure.h"

PYBIND11_MODULE(_C, m) {
  ghn::bind_structure(m);
  m.def("cache_cpu_memory", &ghn::cache_cpu_memory);
  m.def("cached_cpu_memory", [] {
    const ghn::CachedMemory memory = ghn::cached_cpu_memory();
    return std::pair(memory.in_use, memory.kept);
  });
  m.attr("torch_version") = TORCH_VERSION;
#ifdef _OPENMP
  m.attr("has_threads") = true;
#else
  m.attr("has_threads") = false;
#endif
#ifdef GHN_FAST_CUDA
  m.attr("has_cuda") = true;
#else
  m.attr("has_cuda") = false;
#endif
}
