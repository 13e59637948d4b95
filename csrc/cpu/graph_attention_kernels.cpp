// The inner loops of attention within a graph, compiled for several instruction sets and chosen at
// run time.
#include "graph_attention_kernels.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "../common/simd.h"
#include "isa.h"

#define GHN_KERNELS "graph_attention_isa.h"
#include "each_isa.h"

namespace ghn {

AttentionKernels attention_kernels() {
#if defined(GHN_X86)
  if (isa() == Isa::avx512) return avx512::Attention::all();
  if (isa() == Isa::avx2) return avx2::Attention::all();
#endif
  return baseline::Attention::all();
}

}  // namespace ghn
