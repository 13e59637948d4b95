// The Python module ghn_fast._C. Importing it registers the ops; it holds what it was compiled for
// (the version of torch, CUDA or not, threads on the CPU or not), and what works on Python objects.
#include <pybind11/pybind11.h>
#include <torch/version.h>

#include "structure.h"

PYBIND11_MODULE(_C, m) {
  ghn::bind_structure(m);
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
