// The Python module ghn_fast._C. Importing it registers the ops; it holds nothing else but the
// version of torch that it was compiled for.
#include <pybind11/pybind11.h>
#include <torch/version.h>

PYBIND11_MODULE(_C, m) {
  m.attr("torch_version") = TORCH_VERSION;
#ifdef GHN_FAST_CUDA
  m.attr("has_cuda") = true;
#else
  m.attr("has_cuda") = false;
#endif
}
