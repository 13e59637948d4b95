// What lets one header compile for host and device.
#pragma once

#if defined(__CUDACC__)
#define GHN_INLINE __host__ __device__ __forceinline__
#else
#define GHN_INLINE inline __attribute__((always_inline))
#endif
