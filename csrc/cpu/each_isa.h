// Includes the header GHN_KERNELS once per instruction set (see isa.h).
#define GHN_ISA baseline
#define GHN_BYTES 16
#include GHN_KERNELS
#undef GHN_ISA
#undef GHN_BYTES

#if defined(GHN_X86)
GHN_TARGET_AVX2
#define GHN_ISA avx2
#define GHN_BYTES 32
#include GHN_KERNELS
#undef GHN_ISA
#undef GHN_BYTES
GHN_TARGET_END

GHN_TARGET_AVX512
#define GHN_ISA avx512
#define GHN_BYTES 64
#include GHN_KERNELS
#undef GHN_ISA
#undef GHN_BYTES
GHN_TARGET_END
#endif
