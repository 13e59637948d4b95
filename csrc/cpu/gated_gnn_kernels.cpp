// The kernels of the gated GNN, compiled for several instruction sets and chosen at run time.
#include "../common/node_update.h"
#include "gated_gnn_kernels.h"
#include "isa.h"

#define GHN_KERNELS "gated_gnn_isa.h"
#include "each_isa.h"

namespace ghn {

template <class T>
Kernels<T> kernels() {
#if defined(GHN_X86)
  if (isa() == Isa::avx512) return avx512::Kernel<T>::all();
  if (isa() == Isa::avx2) return avx2::Kernel<T>::all();
#endif
  return baseline::Kernel<T>::all();
}

template Kernels<float> kernels<float>();
template Kernels<double> kernels<double>();

}  // namespace ghn
