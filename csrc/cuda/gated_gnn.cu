// The gated GNN on CUDA: one launch for all graphs, sweeps and steps, one block per graph. Every
// sum has a fixed order, so results are deterministic.
//
// There are two pairs of kernels. Those of gated_gnn_ahead_forward.h and gated_gnn_ahead_backward.h
// are for what models have: rows of 32 elements with 32 elements of hidden layers (hid 32, with and
// without virtual edges), float, half or bfloat16, and graphs that fit into shared memory: where a
// block can have 227 KB of it, 1,378 nodes; with virtual edges the forward has 774 there, and takes
// more from global memory. Those of gated_gnn_forward.h and gated_gnn_backward.h are for everything
// else.
//
// A forward is 4 launches and a backward 6 (weights, the schedule in two, the walk; the gradients
// of the weights in two), 2 and 4 without a schedule, and a fill before where weights are padded.
//
// What it takes, per node and sweep, at hid 32, hidden 2 x 16 and 175 edges a node (ResNet-152):
// the products with weights are 12 C^2 + 4 C (H_1 + H_2) = 16,400 floating-point operations, and
// the edges 2 C each, 11,200 more; 8 bytes are read per edge, and a record of 4 Record::width =
// 1,152 bytes is written. That is far below what a multiprocessor does in the time it has. The
// floor is latency: a node waits for the ones before it, so a sweep takes the time of its levels
// one after the other.
//
// Estimates, for nothing of this has run on a GPU: the machine code of the way from barrier to
// barrier that a warp goes with a node, counted with an instruction a cycle, in order, and assumed
// latencies of 4 to 5 cycles for arithmetic, 29 to 33 for shared memory, 40 for what is in the
// nearest cache, 23 for exp2 and reciprocals, 30 for a barrier. A level of up to four nodes then
// takes 670 cycles forward and 810 backward. Meanwhile the other warps sum the early edges of the
// next nodes: 200 of them are 6 to 7 rounds of 32 edges, and 128 bytes of shared memory each, 200
// cycles of its bandwidth. A graph of 443 nodes, 90,314 edges and 364 levels takes 2 x 364 levels,
// 0.25 ms forward and 0.30 ms backward at 1.98 GHz, and its edges 2 x 46 us of bandwidth, which lie
// beneath.
//
// nvcc 13.0 for sm_90, registers a thread: 253 and 250 forward (two messages, one; 254 with rows in
// global memory), 254 backward; of the others at single precision 201 and 181, at double 240 and
// 228. No spills, no stack (tests/kernels/test_cuda_machine_code.py). A multiprocessor holds one
// block, as it would for the shared memory of a large graph.

// torch's builder takes the conversions of the narrow types away; the kernels' are explicit.
#undef __CUDA_NO_HALF_CONVERSIONS__
#undef __CUDA_NO_BFLOAT16_CONVERSIONS__
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <atomic>
#include <type_traits>

#include "gated_gnn_ahead_backward.h"
#include "gated_gnn_ahead_forward.h"
#include "gated_gnn_backward.h"
#include "gated_gnn_forward.h"
#include "gated_gnn_launch.h"
#include "gated_gnn_weights.h"

namespace ghn::cuda {
namespace {

struct DeviceBlock {
  __device__ int thread() const { return int(threadIdx.x); }
  __device__ int index() const { return int(blockIdx.x); }
  __device__ int count() const { return int(gridDim.x); }
  __device__ void sync() const { __syncthreads(); }
  __device__ void sync_warp() const { __syncwarp(); }
  __device__ unsigned ballot(bool flag) const { return __ballot_sync(~0u, flag); }
  template <class V>
  __device__ V shuffle_xor(V value, int mask) const {
    return __shfl_xor_sync(~0u, value, mask);
  }
  // Read, for the cache alone.
  __device__ void touch(const void* at) const {
    [[maybe_unused]] uint32_t value;
    asm volatile("ld.global.b32 %0, [%1];" : "=r"(value) : "l"(at));
  }
};

struct Pointers {
  void* at[12];
};

template <class In, class T>
__global__ void __launch_bounds__(kThreads)
    pack_kernel(Shape shape, Pointers given, bool backward, T* packed) {
  pack_block<In>(DeviceBlock{}, shape, given.at, backward, int(blockIdx.y), packed);
}

template <class T>
__device__ Arena<T> shared_arena(int64_t bytes) {
  extern __shared__ __align__(16) unsigned char memory[];
  return {reinterpret_cast<T*>(memory), bytes / int64_t(sizeof(T))};
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    levels_kernel(Problem problem, const int32_t* plan, void* schedule) {
  levels_block<T>(DeviceBlock{}, problem, plan, schedule);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    visits_kernel(Problem problem, const int32_t* plan, bool backward, void* schedule) {
  visits_block<T>(DeviceBlock{}, problem, plan, backward, schedule);
}

template <class In, int kMessages, bool kFar>
__global__ void __launch_bounds__(kThreads, 1)
    ahead_forward_kernel(ForwardArgs<float> args, int most_nodes) {
  ahead_forward_block<In, float, kMessages, kFar>(DeviceBlock{}, args, most_nodes,
                                                  shared_arena<float>(0));
}

template <class In, int kMessages>
__global__ void __launch_bounds__(kThreads, 1)
    ahead_backward_kernel(BackwardArgs<float> args, int most_nodes) {
  ahead_backward_block<In, float, kMessages>(DeviceBlock{}, args, most_nodes,
                                             shared_arena<float>(0));
}

template <class T>
__global__ void __launch_bounds__(kThreads, 1) products_kernel(BackwardArgs<T> args) {
  __shared__ T memory[WeightProducts<T>::kShared];
  products_block(DeviceBlock{}, args, memory);
}

template <class In, class T>
__global__ void __launch_bounds__(kThreads) gradient_kernel(BackwardArgs<T> args) {
  gradient_block<In>(DeviceBlock{}, args, int(blockIdx.y));
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
// A grid; its blocks go on to what is beyond.
constexpr int64_t kMostBlocks = 65535;

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

// Launch a kernel that sums edges ahead, behind those that find out which.
template <auto kKernel, class Args>
cudaError_t launch_ahead(const Args& args, bool backward, bool far, const LaunchPlace& place) {
  const Problem& problem = args.problem;
  const int64_t most_nodes = place.largest_graph;
  int most = 0;
  cudaError_t error = shared_memory(place.device, &most);
  if (error == cudaSuccess) error = allow_shared_memory<kKernel>(place.device, most);
  if (error != cudaSuccess) return error;
  const int64_t visits = 2 * problem.num_nodes, warps = kThreads / kWarp;
  const auto blocks = [](int64_t count, int64_t each) {
    return unsigned(std::clamp<int64_t>((count + each - 1) / each, 1, kMostBlocks));
  };
  levels_kernel<float><<<blocks(visits, kThreads), kThreads, 0, place.stream>>>(
      problem, args.plan, args.schedule);
  visits_kernel<float><<<blocks(visits, warps), kThreads, 0, place.stream>>>(
      problem, args.plan, backward, args.schedule);
  const int64_t bytes =
      AheadFootprint<float>::of(problem.shape.record, backward, far).bytes(most_nodes);
  kKernel<<<place.blocks, kThreads, size_t(bytes), place.stream>>>(args, int(most_nodes));
  return cudaGetLastError();
}

// Whether the kernels that sum edges ahead are for these weights and graphs, with the rows in
// shared memory or `far`.
bool launches_ahead(const Problem& problem, bool backward, bool far, const LaunchPlace& place) {
  const Record& r = problem.shape.record;
  int most = 0;
  return runs_ahead(r) && shared_memory(place.device, &most) == cudaSuccess &&
         place.largest_graph <= AheadFootprint<float>::of(r, backward, far).nodes(most);
}

// Call run(messages) with their number as a constant.
template <class Run>
cudaError_t with_messages(const Problem& problem, const Run& run) {
  return problem.shape.messages == 2 ? run(std::integral_constant<int, 2>{})
                                     : run(std::integral_constant<int, 1>{});
}

// For a kernel that has a row of blocks for each block of the weights.
dim3 weight_blocks(const Shape& shape) {
  const int64_t c = shape.channels, h = std::max(shape.hidden[0], shape.hidden[1]);
  const int64_t across = (c * std::max(c, h) + kThreads - 1) / kThreads;
  return dim3(unsigned(std::clamp<int64_t>(across, 1, 1024)),
              unsigned(12 + 4 * shape.messages));
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
  const Shape& shape = problem.shape;
  const Record& r = shape.record;
  const bool padded = shape.messages < 2 || shape.channels < r.c || shape.hidden[0] < r.h[0] ||
                      shape.hidden[1] < r.h[1];
  if (padded) {
    const cudaError_t error =
        cudaMemsetAsync(packed, 0, PackedWeights<T>::size(r) * sizeof(T), stream);
    if (error != cudaSuccess) return error;
  }
  Pointers pointers{};
  std::copy(given, given + 4 * (shape.messages + 1), pointers.at);
  return with_element<T>(problem.element, [&](auto in) {
    pack_kernel<decltype(in), T><<<weight_blocks(shape), kThreads, 0, stream>>>(
        shape, pointers, backward, packed);
    return cudaGetLastError();
  });
}

template <class T>
cudaError_t launch_forward(const ForwardArgs<T>& args, const LaunchPlace& place) {
  return with_element<T>(args.problem.element, [&](auto in) {
    typedef decltype(in) In;
    if constexpr (sizeof(T) == sizeof(float)) {
      const auto ahead = [&](auto messages) {
        return launch_ahead<&ahead_forward_kernel<In, messages, false>>(args, false, false, place);
      };
      if (launches_ahead(args.problem, false, false, place)) {
        return with_messages(args.problem, ahead);
      }
      // Twice as many rows as one message and the backward have.
      if (args.problem.shape.messages == 2 && launches_ahead(args.problem, false, true, place)) {
        return launch_ahead<&ahead_forward_kernel<In, 2, true>>(args, false, true, place);
      }
    }
    return launch<&forward_kernel<In, T>, T>(args, false, place);
  });
}

template <class T>
cudaError_t launch_backward(const BackwardArgs<T>& args, const LaunchPlace& place) {
  return with_element<T>(args.problem.element, [&](auto in) {
    typedef decltype(in) In;
    const auto walk = [&] {
      if constexpr (sizeof(T) == sizeof(float)) {
        const auto ahead = [&](auto messages) {
          return launch_ahead<&ahead_backward_kernel<In, messages>>(args, true, false, place);
        };
        if (launches_ahead(args.problem, true, false, place)) {
          return with_messages(args.problem, ahead);
        }
      }
      return launch<&backward_kernel<In, T>, T>(args, true, place);
    };
    const cudaError_t error = walk();
    if (error != cudaSuccess) return error;
    const Shape& shape = args.problem.shape;
    const int64_t tiles = WeightProducts<T>::tiles(shape.record) * args.chunks;
    products_kernel<T>
        <<<unsigned(std::min(tiles, kMostBlocks)), kThreads, 0, place.stream>>>(args);
    gradient_kernel<In, T><<<weight_blocks(shape), kThreads, 0, place.stream>>>(args);
    return cudaGetLastError();
  });
}

#define GHN_INSTANTIATE(T)                                                                         \
  template cudaError_t pack_weights<T>(const Problem&, void* const*, bool, T*, cudaStream_t);      \
  template cudaError_t launch_forward<T>(const ForwardArgs<T>&, const LaunchPlace&);               \
  template cudaError_t launch_backward<T>(const BackwardArgs<T>&, const LaunchPlace&);
GHN_INSTANTIATE(float)
GHN_INSTANTIATE(double)

}  // namespace ghn::cuda
