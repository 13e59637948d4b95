// The gated GNN on CUDA: one launch for all graphs, sweeps and steps, one block per graph. What a
// block does is in gated_gnn_forward.h and gated_gnn_backward.h. Every sum has a fixed order, so
// results are deterministic.
//
// What it takes, per node and sweep, at hid 32, hidden 2 x 16 and 175 edges a node (ResNet-152):
// the products with weights are 12 C^2 + 4 C (H_1 + H_2) = 16,400 floating-point operations and the
// edges 3 C each, 16,800 together; 8 bytes are read per edge, and a record of 4 Record::width =
// 1,152 bytes is written, of which 512 are read again. That is far below what a multiprocessor does
// in the time it has. The floor is latency: a node waits for the ones before it, so a sweep takes
// the time of its levels one after the other, each of them four phases with a barrier behind, and
// one more where several groups of threads share the edges of a node. Weights (34 KB) and
// messages (256 bytes per node, so about 690 nodes in 227 KB) stay in shared memory; the record is
// written and not waited for, and what a tile needs of it is read while the edges are.
//
// nvcc 13.0 for sm_90: 201 registers forward and 181 backward at single precision, 240 and 228 at
// double, no spills. A multiprocessor holds one block, as it would for the shared memory of a large graph.
// torch's builder takes the conversions of the narrow types away; the kernels' are explicit.
#undef __CUDA_NO_HALF_CONVERSIONS__
#undef __CUDA_NO_BFLOAT16_CONVERSIONS__
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <atomic>

#include "gated_gnn_backward.h"
#include "gated_gnn_forward.h"
#include "gated_gnn_launch.h"

namespace ghn::cuda {
namespace {

struct DeviceBlock {
  __device__ int thread() const { return int(threadIdx.x); }
  __device__ int index() const { return int(blockIdx.x); }
  __device__ int count() const { return int(gridDim.x); }
  __device__ void sync() const { __syncthreads(); }
};

struct Pointers {
  void* at[12];
};

template <class In, class T>
__global__ void pack_kernel(Shape shape, Pointers given, bool backward, T* packed) {
  const PackBlock pack{int64_t(blockIdx.x) * blockDim.y + threadIdx.y,
                       int64_t(gridDim.x) * blockDim.y, threadIdx.x, blockDim.x};
  each_weight_block<const In>(shape, given.at, PackedWeights<T>::at(packed, shape.record), backward,
                              pack);
}

template <class T>
__device__ Arena<T> shared_arena(int64_t bytes) {
  extern __shared__ __align__(16) unsigned char memory[];
  return {reinterpret_cast<T*>(memory), bytes / int64_t(sizeof(T))};
}

template <class In, class T>
__global__ void __launch_bounds__(kThreads, 1)
    forward_kernel(ForwardArgs<T> args, int64_t tile, int64_t bytes) {
  forward_block<In>(DeviceBlock{}, args, tile, shared_arena<T>(bytes));
}

template <class In, class T>
__global__ void __launch_bounds__(kThreads, 1)
    backward_kernel(BackwardArgs<T> args, int64_t tile, int64_t bytes) {
  backward_block<In>(DeviceBlock{}, args, tile, shared_arena<T>(bytes));
}

// GPUs of a machine whose kernels are remembered to have been given all their shared memory.
constexpr int kKnownDevices = 64;

// Let a kernel have all the shared memory of a device. Always the same number: threads that launch
// it at a time cannot take memory away from each other.
template <auto kKernel>
cudaError_t allow_shared_memory(int device, int most) {
  static std::atomic<bool> allowed[kKnownDevices];
  const bool known = device >= 0 && device < kKnownDevices;
  if (known && allowed[device].load(std::memory_order_acquire)) return cudaSuccess;
  const cudaError_t error =
      cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
  if (known && error == cudaSuccess) allowed[device].store(true, std::memory_order_release);
  return error;
}

template <auto kKernel, class T, class Args>
cudaError_t launch(const Args& args, bool backward, const LaunchPlace& place) {
  int most = 0;
  const cudaError_t error = shared_memory(place.device, &most);
  if (error != cudaSuccess) return error;
  const Footprint footprint = choose_tile<T>(args.problem.shape.record, backward, most);
  if (footprint.tile == 0) return cudaErrorInvalidConfiguration;
  const int64_t bytes = footprint.bytes(place.largest_graph, most, sizeof(T));
  const cudaError_t raised = allow_shared_memory<kKernel>(place.device, most);
  if (raised != cudaSuccess) return raised;
  kKernel<<<place.blocks, kThreads, size_t(bytes), place.stream>>>(args, footprint.tile, bytes);
  return cudaGetLastError();
}

// Call run(In) with a value of the type of x.
template <class T, class Run>
cudaError_t with_element(Element element, const Run& run) {
  if constexpr (sizeof(T) == 4) {
    if (element == Element::float16) return run(__half{});
    if (element == Element::bfloat16) return run(__nv_bfloat16{});
  }
  return element == Element::same ? run(T{}) : cudaErrorInvalidValue;
}

}  // namespace

cudaError_t shared_memory(int device, int* bytes) {
  return cudaDeviceGetAttribute(bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
}

template <class T>
cudaError_t pack_weights(const Problem& problem, void* const* given, bool backward, T* packed,
                         cudaStream_t stream) {
  const Record& r = problem.shape.record;
  const cudaError_t error =
      cudaMemsetAsync(packed, 0, PackedWeights<T>::size(r) * sizeof(T), stream);
  if (error != cudaSuccess) return error;
  Pointers pointers{};
  std::copy(given, given + 4 * (problem.shape.messages + 1), pointers.at);
  const unsigned blocks = unsigned(std::max<int64_t>(1, std::max(r.c, r.hidden) / 8));
  return with_element<T>(problem.element, [&](auto in) {
    pack_kernel<decltype(in), T>
        <<<blocks, dim3(32, 8), 0, stream>>>(problem.shape, pointers, backward, packed);
    return cudaGetLastError();
  });
}

template <class T>
cudaError_t launch_forward(const ForwardArgs<T>& args, const LaunchPlace& place) {
  return with_element<T>(args.problem.element, [&](auto in) {
    return launch<&forward_kernel<decltype(in), T>, T>(args, false, place);
  });
}

template <class T>
cudaError_t launch_backward(const BackwardArgs<T>& args, const LaunchPlace& place) {
  return with_element<T>(args.problem.element, [&](auto in) {
    return launch<&backward_kernel<decltype(in), T>, T>(args, true, place);
  });
}

#define GHN_INSTANTIATE(T)                                                                         \
  template cudaError_t pack_weights<T>(const Problem&, void* const*, bool, T*, cudaStream_t);      \
  template cudaError_t launch_forward<T>(const ForwardArgs<T>&, const LaunchPlace&);               \
  template cudaError_t launch_backward<T>(const BackwardArgs<T>&, const LaunchPlace&);
GHN_INSTANTIATE(float)
GHN_INSTANTIATE(double)

}  // namespace ghn::cuda
