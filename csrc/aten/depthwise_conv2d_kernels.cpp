// The inner loops of a depthwise convolution, compiled for several instruction sets and chosen at
// run time.
#include "depthwise_conv2d_kernels.h"

#include <algorithm>
#include <utility>

#include "../cpu/isa.h"
#include "lanes.h"

#define GHN_KERNELS "../aten/depthwise_conv2d_isa.h"
#include "../cpu/each_isa.h"

namespace ghn {

template <class T>
DepthwiseKernels<T> depthwise_kernels() {
#if defined(GHN_X86)
  if (isa() == Isa::avx512) return avx512::Depthwise<T>::all();
  if (isa() == Isa::avx2) return avx2::Depthwise<T>::all();
#endif
  return baseline::Depthwise<T>::all();
}

template DepthwiseKernels<float> depthwise_kernels<float>();
template DepthwiseKernels<c10::BFloat16> depthwise_kernels<c10::BFloat16>();

}  // namespace ghn
