// The kernels of the gated GNN for the instruction set of this machine.
#pragma once

#include "gated_gnn_walk.h"

namespace ghn {

// Widest row of node features and of a hidden layer that the kernels hold on the stack.
constexpr int64_t kMaxChannels = 1024;

template <class T>
Kernels<T> kernels();

}  // namespace ghn
