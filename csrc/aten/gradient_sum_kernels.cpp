// The inner loop of a sum of gradients, compiled for several instruction sets and chosen at run
// time.
#include "gradient_sum_kernels.h"

#include <type_traits>

#include "../cpu/isa.h"
#include "lanes.h"

#define GHN_KERNELS "../aten/gradient_sum_isa.h"
#include "../cpu/each_isa.h"

namespace ghn {

template <class T>
GradientSumKernel<T> gradient_sum_kernel() {
#if defined(GHN_X86)
  if (isa() == Isa::avx512) return &avx512::GradientSum<T>::sum;
  if (isa() == Isa::avx2) return &avx2::GradientSum<T>::sum;
#endif
  return &baseline::GradientSum<T>::sum;
}

template GradientSumKernel<float> gradient_sum_kernel<float>();
template GradientSumKernel<c10::BFloat16> gradient_sum_kernel<c10::BFloat16>();

}  // namespace ghn
