// The inner loops of a depthwise convolution, compiled for several instruction sets and chosen at
// run time.
#include "depthwise_conv2d_kernels.h"

#include <algorithm>
#include <utility>

#include "isa.h"
#include "lanes.h"

#define GHN_ISA baseline
#define GHN_BYTES 16
#include "depthwise_conv2d_isa.h"
#undef GHN_ISA
#undef GHN_BYTES

#if defined(GHN_X86)
GHN_TARGET_AVX2
#define GHN_ISA avx2
#define GHN_BYTES 32
#include "depthwise_conv2d_isa.h"
#undef GHN_ISA
#undef GHN_BYTES
GHN_TARGET_END

GHN_TARGET_AVX512
#define GHN_ISA avx512
#define GHN_BYTES 64
#include "depthwise_conv2d_isa.h"
#undef GHN_ISA
#undef GHN_BYTES
GHN_TARGET_END
#endif

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
