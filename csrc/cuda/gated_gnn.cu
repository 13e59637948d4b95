// The gated GNN on CUDA: one launch for all graphs, sweeps and steps, one block per graph.
//
// A block walks the levels of its graph. Per tile of nodes of a level its threads go over pairs of
// a node and a channel, phase by phase: gather the messages, the three sums of the GRU, its gates,
// the hidden layers, what is sent on. Weights and messages (backward: gradients of the messages)
// lie in shared memory as far as they fit, in global memory otherwise. Every sum has a fixed
// order, so results are deterministic. A plan that does not belong to x gives NaN.
#include <cmath>

#include "../common/node_update.h"
#include "gated_gnn.h"

namespace ghn::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTile = 8;  // nodes of a level that go through the phases together

// Where each matrix of the packed weights lies; rows are inputs, columns outputs.
template <class T>
struct Layout {
  // forward (C, 3 C) r z n; backward (3 C, C): ih n r z, hh r z n
  T *ih, *hh, *ih_b, *hh_b;
  T *first, *first_b;          // forward (C, H), (H); backward (H, C)
  T *second[2], *second_b[2];  // forward (H_k, C), (C); backward (C, H_k)

  static GHN_INLINE Layout at(T* base, const Record& r) {
    Layout l;
    l.ih = base, base += 3 * r.c * r.c;
    l.hh = base, base += 3 * r.c * r.c;
    l.ih_b = base, base += 3 * r.c;
    l.hh_b = base, base += 3 * r.c;
    l.first = base, base += r.hidden * r.c;
    l.first_b = base, base += r.hidden;
    for (int k = 0; k < 2; ++k) {
      l.second[k] = base, base += r.h[k] * r.c;
      l.second_b[k] = base, base += r.c;
    }
    return l;
  }
};

template <class T>
__global__ void pack_kernel(Shape shape, WeightPointers<T> from, bool backward, T* packed) {
  const Record& r = shape.record;
  const int64_t c = shape.channels, cp = r.c;
  const Layout<T> to = Layout<T>::at(packed, r);
  const int64_t stride = int64_t(gridDim.x) * blockDim.x;
  const int64_t start = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  for (int64_t i = start; i < 3 * c * c; i += stride) {
    const int64_t gate = i / (c * c), o = i / c % c, in = i % c;
    const int64_t turned = (gate + 1) % 3;  // r z n -> n r z
    to.ih[backward ? (turned * cp + o) * cp + in : in * 3 * cp + gate * cp + o] = from.ih[i];
    to.hh[backward ? (gate * cp + o) * cp + in : in * 3 * cp + gate * cp + o] = from.hh[i];
  }
  for (int64_t i = start; i < 3 * c; i += stride) {
    to.ih_b[i / c * cp + i % c] = from.ih_b[i];
    to.hh_b[i / c * cp + i % c] = from.hh_b[i];
  }
  for (int64_t k = 0; k < r.messages; ++k) {
    const int64_t h = shape.hidden[k], shift = k == 0 ? 0 : r.h[0];
    for (int64_t i = start; i < h * c; i += stride) {
      const int64_t o = i / c, in = i % c;  // first: (H, C)
      to.first[backward ? (shift + o) * cp + in : in * r.hidden + shift + o] = from.first[k][i];
      const int64_t o2 = i / h, in2 = i % h;  // second: (C, H)
      to.second[k][backward ? o2 * r.h[k] + in2 : in2 * cp + o2] = from.second[k][i];
    }
    for (int64_t i = start; i < h; i += stride) to.first_b[shift + i] = from.first_b[k][i];
    for (int64_t i = start; i < c; i += stride) to.second_b[k][i] = from.second_b[k][i];
  }
}

// Shared memory, handed out piece by piece.
template <class T>
struct Arena {
  T* next;
  int64_t left;  // elements

  __device__ T* take(int64_t size) {
    if (size > left) return nullptr;
    T* at = next;
    next += size;
    left -= size;
    return at;
  }
};

template <class T>
__device__ Arena<T> shared_arena(int64_t bytes) {
  extern __shared__ __align__(16) unsigned char memory[];
  return {reinterpret_cast<T*>(memory), bytes / int64_t(sizeof(T))};
}

// The packed weights, copied to shared memory where they fit.
template <class T>
__device__ Layout<T> place_weights(Arena<T>& arena, const T* packed, const Record& r) {
  const int64_t size = packed_size(r);
  T* at = arena.take(size);
  if (at == nullptr) return Layout<T>::at(const_cast<T*>(packed), r);
  for (int64_t i = threadIdx.x; i < size; i += kThreads) at[i] = packed[i];
  return Layout<T>::at(at, r);
}

__device__ bool plan_fits(const int32_t* plan, const Shape& shape) {
  return plan[0] == Plan::kMagic && plan[1] >= 0 && plan[2] == shape.num_nodes && plan[3] >= 0 &&
         plan[4] >= 0 && plan[5] >= 0 && Plan::size(plan) == shape.plan_size;
}

template <class T>
__device__ void fill_nan(T* to, int64_t size) {
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < size; i += stride) {
    to[i] = T(NAN);
  }
}

// bias + sum_i w[i, column] x[i], inputs ascending.
template <class T>
__device__ T affine(T sum, const T* w, int64_t width, const T* x, int64_t inputs) {
  for (int64_t i = 0; i < inputs; ++i) sum += w[i * width] * x[i];
  return sum;
}

template <class T>
struct Pair {
  T near, far;
};

// Sums of rows of `from` along the edges [begin, end) of a node: over those before `split` in
// `near`, over the others, weighted, in `far`. With two columns, `near` has both of them.
template <class T>
__device__ Pair<T> add_edges(const EdgeList& list, const T* from, int64_t width, int64_t column,
                             int64_t second, int64_t begin, int64_t end, int64_t split, int64_t n) {
  Pair<T> sum{T(0), T(0)};
  for (int64_t e = begin; e < end; ++e) {
    const int64_t u = list.node[e];
    if (uint64_t(u) >= uint64_t(n)) continue;
    const T* row = from + u * width;
    if (e < split) {
      sum.near += row[column];
      if (second >= 0) sum.near += row[second];
    } else {
      sum.far += row[second >= 0 ? second : column] / T(list.distance[e]);
    }
  }
  return sum;
}

// The sums of add_edges for all nodes of a tile; the edges of a node are shared by several groups
// of threads where there are few nodes. `store` gets node, channel and sums.
template <class T, class Store>
__device__ void over_edges(const EdgeList& list, const T* from, int64_t width, int64_t second,
                           bool far, const int32_t* nodes, int count, int64_t first, int64_t n,
                           int64_t c, Pair<T>* partial, const Store& store) {
  // Rows wider than the block are covered in several rounds.
  const int64_t span = c < kThreads ? c : kThreads;
  const int groups = int(kThreads / span);
  const int parts = count < groups ? groups / count : 1;
  const int group = int(threadIdx.x / span), lane = int(threadIdx.x % span);
  for (int64_t base = 0; base < c; base += span) {
    const int64_t j = base + lane;
    for (int task = group; task < count * parts && group < groups; task += groups) {
      const int64_t v = nodes[task / parts], part = task % parts;
      const int64_t begin = list.ptr[first + v], split = list.split[first + v];
      const int64_t end = far ? list.ptr[first + v + 1] : split;
      const int64_t share = (end - begin + parts - 1) / parts;
      const int64_t from_edge = begin + part * share;
      const int64_t to_edge = from_edge + share < end ? from_edge + share : end;
      Pair<T> sum{T(0), T(0)};
      if (j < c) {
        sum = add_edges(list, from, width, j, second < 0 ? -1 : second + j, from_edge, to_edge,
                        split, n);
      }
      if (parts == 1) {
        if (j < c) store(task, j, sum);
      } else {
        partial[task * span + lane] = sum;
      }
    }
    if (parts > 1) {
      __syncthreads();
      if (group < count && group < groups && j < c) {
        Pair<T> sum{T(0), T(0)};
        for (int part = 0; part < parts; ++part) {
          const Pair<T>& p = partial[(group * parts + part) * span + lane];
          sum.near += p.near;
          sum.far += p.far;
        }
        store(group, j, sum);
      }
      __syncthreads();
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) forward_kernel(ForwardArgs<T> args, int64_t bytes) {
  typedef NodeUpdate<T, 1> Update;
  const Shape& shape = args.shape;
  const Record& r = shape.record;
  const int64_t c = r.c, channels = shape.channels, N = shape.num_nodes;
  if (!plan_fits(args.plan, shape)) return fill_nan(args.out, N * channels);
  const Plan plan = Plan::read(args.plan);
  Arena<T> arena = shared_arena<T>(bytes);
  auto* partial = reinterpret_cast<Pair<T>*>(arena.take(2 * kThreads));
  T* const message = arena.take(kTile * c);
  T* const sums = arena.take(kTile * 3 * c);
  T* const state = arena.take(kTile * c);
  T* const hidden = arena.take(kTile * r.hidden);
  const Layout<T> w = place_weights(arena, args.packed, r);

  for (int64_t g = blockIdx.x; g < plan.num_graphs; g += gridDim.x) {
    const int64_t first = plan.graph_ptr[g], n = plan.graph_ptr[g + 1] - first;
    Arena<T> rest = arena;
    T* const near_sent = rest.take(n * r.messages * c);
    for (int sweep = 0; sweep < shape.sweeps; ++sweep) {
      T* const base = args.record + int64_t(sweep % args.records) * N * r.width;
      const Fields<T> f = Fields<T>::at(base, r, N, first);
      const T* before = args.x + first * channels;
      int64_t before_width = channels;
      if (sweep > 0) {
        T* const last = args.record + int64_t((sweep - 1) % args.records) * N * r.width;
        before = Fields<T>::at(last, r, N, first).state;
        before_width = c;
      }
      T* const sent = near_sent != nullptr ? near_sent : f.sent;
      __syncthreads();
      for (int64_t i = threadIdx.x; i < n * 3 * c; i += kThreads) {
        const int64_t v = i / (3 * c), o = i % (3 * c);
        f.gates[v * 4 * c + o] =
            affine(w.hh_b[o], w.hh + o, 3 * c, before + v * before_width, channels);
      }
      const SweepOrder& order = plan.sweep[sweep % 2];
      const EdgeList& edges = plan.gather(sweep % 2);
      for (int32_t l = order.graph_level[g]; l < order.graph_level[g + 1]; ++l) {
        for (int64_t at = order.level[l]; at < order.level[l + 1]; at += kTile) {
          const int32_t* nodes = order.node + at;
          const int count = int(min(int64_t(kTile), int64_t(order.level[l + 1]) - at));
          __syncthreads();
          over_edges(edges, sent, r.messages * c, r.messages == 2 ? c : -1, r.messages == 2, nodes,
                     count, first, n, c, partial, [&](int k, int64_t j, const Pair<T>& sum) {
                       message[k * c + j] = sum.near + sum.far;
                       f.message[nodes[k] * c + j] = sum.near + sum.far;
                     });
          __syncthreads();
          for (int64_t i = threadIdx.x; i < count * 3 * c; i += kThreads) {
            const int64_t k = i / (3 * c), o = i % (3 * c);
            sums[i] = affine(w.ih_b[o], w.ih + o, 3 * c, message + k * c, channels);
          }
          __syncthreads();
          for (int64_t i = threadIdx.x; i < count * c; i += kThreads) {
            const int64_t k = i / c, j = i % c, v = nodes[k];
            T* const gate = f.gates + v * 4 * c;
            const T* const sum = sums + k * 3 * c;
            const T h = j < channels ? before[v * before_width + j] : T(0);
            const auto u = Update::gru(sum[j], sum[c + j], sum[2 * c + j], gate[j], gate[c + j],
                                       gate[2 * c + j], h);
            gate[j] = u.r, gate[c + j] = u.z, gate[3 * c + j] = u.n;
            state[i] = u.out;
            f.state[v * c + j] = u.out;
            if (sweep + 1 == shape.sweeps && j < channels) {
              args.out[(first + v) * channels + j] = u.out;
            }
          }
          __syncthreads();
          for (int64_t i = threadIdx.x; i < count * r.hidden; i += kThreads) {
            const int64_t k = i / r.hidden, o = i % r.hidden;
            const T sum = affine(w.first_b[o], w.first + o, r.hidden, state + k * c, channels);
            hidden[i] = f.hidden[nodes[k] * r.hidden + o] = Update::relu(sum);
          }
          __syncthreads();
          for (int64_t i = threadIdx.x; i < count * r.messages * c; i += kThreads) {
            const int64_t k = i / (r.messages * c), o = i % (r.messages * c), m = o / c;
            const T* const layer = hidden + k * r.hidden + (m == 0 ? 0 : r.h[0]);
            const T value = Update::relu(affine(w.second_b[m][o % c], w.second[m] + o % c, c, layer,
                                                shape.hidden[m]));
            const int64_t place = nodes[k] * r.messages * c + o;
            sent[place] = value;
            f.sent[place] = value;
          }
        }
      }
    }
    __syncthreads();
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) backward_kernel(BackwardArgs<T> args, int64_t bytes) {
  typedef NodeUpdate<T, 1> Update;
  const Shape& shape = args.shape;
  const Record& r = shape.record;
  const int64_t c = r.c, channels = shape.channels, N = shape.num_nodes;
  if (!plan_fits(args.plan, shape)) return fill_nan(args.grad_x, N * channels);
  const Plan plan = Plan::read(args.plan);
  Arena<T> arena = shared_arena<T>(bytes);
  auto* partial = reinterpret_cast<Pair<T>*>(arena.take(2 * kThreads));
  T* const sent = arena.take(kTile * r.messages * c);
  T* const hidden = arena.take(kTile * r.hidden);
  T* const gates = arena.take(kTile * 4 * c);
  const Layout<T> w = place_weights(arena, args.packed, r);

  for (int64_t g = blockIdx.x; g < plan.num_graphs; g += gridDim.x) {
    const int64_t first = plan.graph_ptr[g], n = plan.graph_ptr[g + 1] - first;
    Arena<T> rest = arena;
    T* const near_message = rest.take(n * c);
    T* const d_message = near_message != nullptr ? near_message : args.d_message + first * c;
    T* const d_state = args.d_state + first * c;
    for (int64_t i = threadIdx.x; i < n * c; i += kThreads) {
      const int64_t v = i / c, j = i % c;
      d_state[i] = j < channels ? args.grad[(first + v) * channels + j] : T(0);
    }
    for (int sweep = shape.sweeps - 1; sweep >= 0; --sweep) {
      T* const base = const_cast<T*>(args.record) + int64_t(sweep) * N * r.width;
      const Fields<T> f = Fields<T>::at(base, r, N, first);
      const T* before = args.x + first * channels;
      int64_t before_width = channels;
      if (sweep > 0) before = f.state - N * r.width, before_width = c;
      T* const factors = args.factors + int64_t(sweep) * N * factors_width(r);
      T* const all_gates = factors + first * 4 * c;
      T* const all_hidden = factors + N * 4 * c + first * r.hidden;
      T* const all_sent = factors + N * (4 * c + r.hidden) + first * r.messages * c;
      const SweepOrder& order = plan.sweep[sweep % 2];
      const EdgeList& edges = plan.scatter(sweep % 2);
      for (int32_t l = order.graph_level[g + 1] - 1; l >= order.graph_level[g]; --l) {
        for (int64_t at = order.level[l]; at < order.level[l + 1]; at += kTile) {
          const int32_t* nodes = order.node + at;
          const int count = int(min(int64_t(kTile), int64_t(order.level[l + 1]) - at));
          __syncthreads();
          over_edges(edges, d_message, c, int64_t(-1), r.messages == 2, nodes, count, first, n, c,
                     partial, [&](int k, int64_t j, const Pair<T>& sum) {
                       const int64_t width = r.messages * c, v = nodes[k];
                       const T near = Update::relu_backward(sum.near, f.sent[v * width + j]);
                       sent[k * width + j] = all_sent[v * width + j] = near;
                       if (r.messages == 2) {
                         const T both =
                             Update::relu_backward(sum.near + sum.far, f.sent[v * width + c + j]);
                         sent[k * width + c + j] = all_sent[v * width + c + j] = both;
                       }
                     });
          __syncthreads();
          for (int64_t i = threadIdx.x; i < count * r.hidden; i += kThreads) {
            const int64_t k = i / r.hidden, o = i % r.hidden, m = o < r.h[0] ? 0 : 1;
            const int64_t column = o - (m == 0 ? 0 : r.h[0]);
            const T sum = affine(T(0), w.second[m] + column, r.h[m],
                                 sent + (k * r.messages + m) * c, channels);
            const int64_t place = nodes[k] * r.hidden + o;
            hidden[i] = all_hidden[place] = Update::relu_backward(sum, f.hidden[place]);
          }
          __syncthreads();
          for (int64_t i = threadIdx.x; i < count * c; i += kThreads) {
            const int64_t k = i / c, j = i % c, v = nodes[k];
            const T* const gate = f.gates + v * 4 * c;
            const T h = j < channels ? before[v * before_width + j] : T(0);
            const T grad =
                affine(d_state[v * c + j], w.first + j, c, hidden + k * r.hidden, r.hidden);
            const auto d =
                Update::gru_backward(grad, h, gate[j], gate[c + j], gate[3 * c + j], gate[2 * c + j]);
            const T values[4] = {d.n, d.r, d.z, d.hn};
            for (int q = 0; q < 4; ++q) {
              gates[k * 4 * c + q * c + j] = all_gates[v * 4 * c + q * c + j] = values[q];
            }
            d_state[v * c + j] = d.h;
          }
          __syncthreads();
          for (int64_t i = threadIdx.x; i < count * c; i += kThreads) {
            const int64_t k = i / c, j = i % c;
            d_message[nodes[k] * c + j] =
                affine(T(0), w.ih + j, c, gates + k * 4 * c, 3 * c);
          }
        }
      }
      __syncthreads();
      for (int64_t i = threadIdx.x; i < n * c; i += kThreads) {
        const int64_t v = i / c, j = i % c;
        d_state[i] = affine(d_state[i], w.hh + j, c, all_gates + v * 4 * c + c, 3 * c);
      }
      __syncthreads();
    }
    for (int64_t i = threadIdx.x; i < n * channels; i += kThreads) {
      args.grad_x[first * channels + i] = d_state[i / channels * c + i % channels];
    }
    __syncthreads();
  }
}

// Launch with as much shared memory as a block can have, and a block per multiprocessor: which
// graphs there are is known to the device alone.
template <class Args, class Kernel>
cudaError_t launch(Kernel kernel, const Args& args, int64_t least, int device,
                   cudaStream_t stream) {
  int bytes = 0, blocks = 0;
  cudaError_t error =
      cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&blocks, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  if (bytes < least) return cudaErrorInvalidConfiguration;
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  kernel<<<blocks, kThreads, bytes, stream>>>(args, bytes);
  return cudaGetLastError();
}

}  // namespace

template <class T>
cudaError_t pack_weights(const Shape& shape, const WeightPointers<T>& weights, bool backward,
                         T* packed, cudaStream_t stream) {
  const int64_t size = packed_size(shape.record);
  const cudaError_t error = cudaMemsetAsync(packed, 0, size * sizeof(T), stream);
  if (error != cudaSuccess) return error;
  pack_kernel<T><<<unsigned((size + 255) / 256), 256, 0, stream>>>(shape, weights, backward, packed);
  return cudaGetLastError();
}

template <class T>
cudaError_t launch_forward(const ForwardArgs<T>& args, int device, cudaStream_t stream) {
  const Record& r = args.shape.record;
  const int64_t least = (2 * kThreads + kTile * (5 * r.c + r.hidden)) * int64_t(sizeof(T));
  return launch(&forward_kernel<T>, args, least, device, stream);
}

template <class T>
cudaError_t launch_backward(const BackwardArgs<T>& args, int device, cudaStream_t stream) {
  const Record& r = args.shape.record;
  const int64_t least =
      (2 * kThreads + kTile * ((4 + r.messages) * r.c + r.hidden)) * int64_t(sizeof(T));
  return launch(&backward_kernel<T>, args, least, device, stream);
}

#define GHN_INSTANTIATE(T)                                                                       \
  template cudaError_t pack_weights<T>(const Shape&, const WeightPointers<T>&, bool, T*,         \
                                       cudaStream_t);                                            \
  template cudaError_t launch_forward<T>(const ForwardArgs<T>&, int, cudaStream_t);              \
  template cudaError_t launch_backward<T>(const BackwardArgs<T>&, int, cudaStream_t);
GHN_INSTANTIATE(float)
GHN_INSTANTIATE(double)

}  // namespace ghn::cuda
