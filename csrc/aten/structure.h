// The walk over the modules of a network that its structural key is made by.
#pragma once

#include <pybind11/pybind11.h>

namespace ghn {

void bind_structure(pybind11::module_& m);

}  // namespace ghn
