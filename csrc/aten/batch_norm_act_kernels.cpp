// The inner loops of a batch normalisation, compiled for several instruction sets and chosen at
// run time.
#include "batch_norm_act_kernels.h"

#include <type_traits>

#include "../cpu/isa.h"
#include "lanes.h"

#define GHN_KERNELS "../aten/batch_norm_act_isa.h"
#include "../cpu/each_isa.h"

namespace ghn {

template <class T>
BatchNormKernels<T> batch_norm_kernels() {
#if defined(GHN_X86)
  if (isa() == Isa::avx512) return avx512::BatchNorm<T>::all();
  if (isa() == Isa::avx2) return avx2::BatchNorm<T>::all();
#endif
  return baseline::BatchNorm<T>::all();
}

template BatchNormKernels<float> batch_norm_kernels<float>();
template BatchNormKernels<c10::BFloat16> batch_norm_kernels<c10::BFloat16>();

}  // namespace ghn
