// Which instruction set the kernels use, and how one header is compiled for several of them.
//
// A file of kernels includes its header through each_isa.h, once per set, so that a binary made on
// one machine runs on another.
//
// Nothing but the kernels is compiled for the wider sets: an inline function of a header that was
// would be shared with the whole program. What a kernel's header includes is therefore included
// before.
#pragma once

namespace ghn {

enum class Isa { baseline, avx2, avx512 };

// The widest set that this machine has and that ATEN_CPU_CAPABILITY, which restricts PyTorch's own
// kernels, allows.
Isa isa();

}  // namespace ghn

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
#define GHN_TARGET_AVX2 GHN_TARGET("avx2,fma")
#define GHN_TARGET_AVX512 GHN_TARGET("avx512f,avx512dq,avx512vl,avx512bw,fma")
#endif
