// The Python module ghn_fast._aten. Importing it registers the ops that need ATen; it holds what it was
// compiled for (the version of torch, threads or not), and what works on Python objects.
#include <pybind11/pybind11.h>
#include <torch/version.h>

#include <utility>

#include "caching_allocator.h"
#include "structure.h"

PYBIND11_MODULE(_aten, m) {
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
}
