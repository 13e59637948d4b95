// The decoder's product, compiled for several instruction sets and chosen at run time.
#include "decode_blocks_kernels.h"

#include "../common/simd.h"
#include "isa.h"

#define GHN_KERNELS "decode_blocks_isa.h"
#include "each_isa.h"

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
