// The kernels of the gated GNN, compiled for several instruction sets and chosen at run time, so
// that a binary made on one machine runs on another. Nothing but the kernels is compiled for the
// wider sets: an inline function of a header that was would be shared with the whole program.
#include <cstdlib>
#include <cstring>

#include "../common/node_update.h"
#include "gated_gnn_kernels.h"

#define GHN_ISA baseline
#define GHN_BYTES 16
#include "gated_gnn_kernel.h"
#undef GHN_ISA
#undef GHN_BYTES

#if defined(__x86_64__)
#define GHN_X86 1
#define GHN_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define GHN_TARGET(isa) \
  GHN_PRAGMA(clang attribute push(__attribute__((target(isa))), apply_to = function))
#define GHN_TARGET_END _Pragma("clang attribute pop")
#else
#define GHN_TARGET(isa) _Pragma("GCC push_options") GHN_PRAGMA(GCC target(isa))
#define GHN_TARGET_END _Pragma("GCC pop_options")
#endif

GHN_TARGET("avx2,fma")
#define GHN_ISA avx2
#define GHN_BYTES 32
#include "gated_gnn_kernel.h"
#undef GHN_ISA
#undef GHN_BYTES
GHN_TARGET_END

GHN_TARGET("avx512f,avx512dq,avx512vl,avx512bw,fma")
#define GHN_ISA avx512
#define GHN_BYTES 64
#include "gated_gnn_kernel.h"
#undef GHN_ISA
#undef GHN_BYTES
GHN_TARGET_END
#endif

namespace ghn {
namespace {

enum class Isa { baseline, avx2, avx512 };

Isa choose() {
#if defined(GHN_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512bw");
  // The variable that restricts PyTorch's own kernels restricts these, too.
  const char* cap = std::getenv("ATEN_CPU_CAPABILITY");
  if (cap != nullptr && std::strcmp(cap, "default") == 0) return Isa::baseline;
  if (avx512 && !(cap != nullptr && std::strcmp(cap, "avx2") == 0)) return Isa::avx512;
  if (avx2) return Isa::avx2;
#endif
  return Isa::baseline;
}

Isa isa() {
  static const Isa chosen = choose();
  return chosen;
}

}  // namespace

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
