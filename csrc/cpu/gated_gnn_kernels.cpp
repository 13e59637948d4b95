// The kernels of the gated GNN, compiled for several instruction sets and chosen at run time.
#include "../common/node_update.h"
#include "gated_gnn_kernels.h"
#include "isa.h"

#define GHN_ISA baseline
#define GHN_BYTES 16
#include "gated_gnn_kernel.h"
#undef GHN_ISA
#undef GHN_BYTES

#if defined(GHN_X86)
GHN_TARGET_AVX2
#define GHN_ISA avx2
#define GHN_BYTES 32
#include "gated_gnn_kernel.h"
#undef GHN_ISA
#undef GHN_BYTES
GHN_TARGET_END

GHN_TARGET_AVX512
#define GHN_ISA avx512
#define GHN_BYTES 64
#include "gated_gnn_kernel.h"
#undef GHN_ISA
#undef GHN_BYTES
GHN_TARGET_END
#endif

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
