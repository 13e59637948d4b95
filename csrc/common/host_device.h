// What lets one header compile for host and device.
#pragma once

#if defined(__CUDACC__)
#define GHN_INLINE __host__ __device__ __forceinline__
#define GHN_DEVICE __device__ __forceinline__
#define GHN_UNROLL _Pragma("unroll")
#define GHN_UNROLL_4 _Pragma("unroll 4")
#else
#define GHN_INLINE inline __attribute__((always_inline))
#define GHN_DEVICE inline
#define GHN_UNROLL
#define GHN_UNROLL_4
#endif
