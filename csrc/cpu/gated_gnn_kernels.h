// The kernels of the gated GNN for the instruction set of this machine.
#pragma once

#include "gated_gnn_walk.h"

namespace ghn {

template <class T>
Kernels<T> kernels();

}  // namespace ghn
