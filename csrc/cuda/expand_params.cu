// Expansion of decoded blocks into parameters on CUDA: one launch forward, one backward.
//
// Forward: a tile is kTile elements of one parameter. Blocks of threads take contiguous runs of
// tiles, so that each looks up its first row once. Stores are coalesced, 16 bytes a thread where
// rows, periods and offsets allow it; the block's elements come from the caches, since each is read
// as often as it repeats. The floor is the memory's bandwidth for writing.
//
// Backward: a tile is 32 elements of a block, each summed by 8 threads of 8 warps, which read 32
// neighbouring gradients at a time, or 256 elements where there are few copies. Parts are added in a
// fixed order, without atomics: the result is deterministic. The floor is reading every gradient
// once.
#include "expand_params.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>

#include "../common/expand_params_walk.h"

namespace ghn {

// Conversions by name: torch compiles extensions without the implicit ones.
template <>
struct ExpandMath<__half> {
  typedef float type;
  static GHN_INLINE float widen(__half x) { return __half2float(x); }
  static GHN_INLINE __half narrow(float x) { return __float2half_rn(x); }
};

template <>
struct ExpandMath<__nv_bfloat16> {
  typedef float type;
  static GHN_INLINE float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
  static GHN_INLINE __nv_bfloat16 narrow(float x) { return __float2bfloat16_rn(x); }
};

}  // namespace ghn

namespace ghn::cuda {
namespace {

template <class T>
__device__ void fill_with_nan(T* to, int64_t size) {
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < size; i += step) {
    to[i] = ExpandMath<T>::narrow(NAN);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    expand_kernel(ExpandArgs args, const __grid_constant__ Blocks blocks, T* out, int64_t numel) {
  const ExpandPlan plan = ExpandPlan::read(args.packed, args.rows, args.segments);
  if (plan.header->fingerprint != args.fingerprint) {
    fill_with_nan(out, numel);
    return;
  }
  const auto block_at = [&](int32_t b) { return static_cast<const T*>(blocks.at[b]); };
  expand_thread<T>(plan, block_at, args.aligned, blockIdx.x, gridDim.x, threadIdx.x, out);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(ExpandArgs args, const __grid_constant__ BlocksAndGradients blocks,
                    const T* grad) {
  typedef typename ExpandMath<T>::type M;
  __shared__ M parts[kThreads];
  const ExpandPlan plan = ExpandPlan::read(args.packed, args.rows, args.segments);
  if (plan.header->fingerprint != args.fingerprint) {
    for (int32_t b = 0; b < args.num_blocks; ++b) {
      fill_with_nan(static_cast<T*>(blocks.grad[b]), blocks.size[b]);
    }
    return;
  }
  const TileRun run(plan.header->segment_tiles, blockIdx.x, gridDim.x);
  if (run.begin >= run.end) return;
  int64_t s = find_tile([&](int64_t i) { return plan.segments[i].tile; }, args.segments, run.begin);
  for (int64_t tile = run.begin; tile < run.end; ++tile) {
    while (s + 1 < args.segments && plan.segments[s + 1].tile <= tile) ++s;
    const ExpandSegment segment = plan.segments[s];
    const GradientPlace place(segment, tile, threadIdx.x);
    const T* block = static_cast<const T*>(blocks.at[segment.block]);
    M sum = partial_gradient<T>(plan, segment, place, grad, block);
    // The width is the same for the whole block of threads, so all of them meet at the barriers.
    if (place.parts > 1) {
      parts[threadIdx.x] = sum;
      __syncthreads();
      if (place.part == 0) {
        for (uint32_t k = 1; k < place.parts; ++k) sum += parts[k * place.width + place.lane];
      }
      __syncthreads();
    }
    if (place.part == 0 && place.element < segment.end) {
      static_cast<T*>(blocks.grad[segment.block])[place.element] =
          ExpandMath<T>::narrow(sum);
    }
  }
}

// Enough blocks of threads to fill the device some times over: they take turns on its processors.
cudaError_t grid_size(int device, int* grid) {
  int processors = 0;
  const cudaError_t error =
      cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  *grid = processors * 16;
  return error;
}

template <class F>
void with_type(Type type, F f) {
  switch (type) {
    case Type::kFloat: return f(float{});
    case Type::kDouble: return f(double{});
    case Type::kHalf: return f(__half());
    case Type::kBFloat16: return f(__nv_bfloat16());
  }
}

}  // namespace

cudaError_t launch_expand(const ExpandArgs& args, const Blocks& blocks, void* out, int64_t numel,
                          int device, cudaStream_t stream) {
  int grid = 0;
  if (const cudaError_t error = grid_size(device, &grid); error != cudaSuccess) return error;
  with_type(args.type, [&](auto type) {
    typedef decltype(type) T;
    expand_kernel<T><<<grid, kThreads, 0, stream>>>(args, blocks, static_cast<T*>(out), numel);
  });
  return cudaGetLastError();
}

cudaError_t launch_expand_backward(const ExpandArgs& args, const BlocksAndGradients& blocks,
                                   const void* grad, int device, cudaStream_t stream) {
  int grid = 0;
  if (const cudaError_t error = grid_size(device, &grid); error != cudaSuccess) return error;
  with_type(args.type, [&](auto type) {
    typedef decltype(type) T;
    backward_kernel<T>
        <<<grid, kThreads, 0, stream>>>(args, blocks, static_cast<const T*>(grad));
  });
  return cudaGetLastError();
}

}  // namespace ghn::cuda
