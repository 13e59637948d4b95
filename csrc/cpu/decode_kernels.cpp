// The decoder's product, compiled for several instruction sets and chosen at run time.
#include "decode_kernels.h"

#include "../common/simd.h"
#include "isa.h"

#define GHN_ISA baseline
#define GHN_BYTES 16
#include "decode_kernel.h"
#undef GHN_ISA
#undef GHN_BYTES

#if defined(GHN_X86)
GHN_TARGET_AVX2
#define GHN_ISA avx2
#define GHN_BYTES 32
#include "decode_kernel.h"
#undef GHN_ISA
#undef GHN_BYTES
GHN_TARGET_END

GHN_TARGET_AVX512
#define GHN_ISA avx512
#define GHN_BYTES 64
#include "decode_kernel.h"
#undef GHN_ISA
#undef GHN_BYTES
GHN_TARGET_END
#endif

namespace ghn {
namespace {

template <class Product>
DecodeKernel kernel_of() {
  static_assert(Product::kColumns <= DecodeKernel::kMostColumns);
  static_assert(Product::kRows <= DecodeKernel::kMostRows);
  return {Product::kColumns, Product::kRows, &Product::product};
}

}  // namespace

DecodeKernel decode_kernel() {
#if defined(GHN_X86)
  if (isa() == Isa::avx512) return kernel_of<avx512::Product>();
  if (isa() == Isa::avx2) return kernel_of<avx2::Product>();
#endif
  return kernel_of<baseline::Product>();
}

}  // namespace ghn
