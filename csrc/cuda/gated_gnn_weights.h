// The weights of the gated GNN on their way into the kernels, and their gradients on the way out,
// as the code of one block. `Block` is the block of threads, as in gated_gnn_block.h.
//
// The gradient of a weight is a product over all nodes of all sweeps at once: what backward has
// left per node (Factors) times what forward has (Fields). One launch has a block per tile of a
// product and chunk of the nodes, a second one adds the chunks up in their order and writes each
// gradient where and as the caller wants it: two launches, however many weights there are, and the
// same bits each time.
#pragma once

#include "gated_gnn.h"

namespace ghn::cuda {

// Call run(block) for one of the blocks of the weights.
template <class Given, class T, class Run>
GHN_DEVICE void one_weight_block(const Shape& shape, void* const* given,
                                 const PackedWeights<T>& packed, bool backward, int which,
                                 const Run& run) {
  int number = 0;
  each_weight_block<Given>(shape, given, packed, backward, [&](const auto& found) {
    if (number++ == which) run(found);
  });
}

// Copies one block of the weights into `packed`; the blocks along `index` share it.
template <class In, class T, class Block>
GHN_DEVICE void pack_block(const Block& block, const Shape& shape, void* const* given,
                           bool backward, int which, T* packed) {
  one_weight_block<const In>(
      shape, given, PackedWeights<T>::at(packed, shape.record), backward, which,
      [&](const auto& found) {
        const int64_t stride = int64_t(block.count()) * kThreads, columns = found.columns;
        for (int64_t i = int64_t(block.index()) * kThreads + block.thread();
             i < found.rows * columns; i += stride) {
          found.packed[i / columns * found.row_step + i % columns * found.column_step] =
              static_cast<T>(found.given[i]);
        }
      });
}

// sum over nodes of a[node, i] b[node, j], both of them arrays of each sweep.
template <class T>
struct WeightProduct {
  const T *a, *b;  // of the first sweep; b of the second one, if the first has `start`
  const T* start;  // what the first sweep has instead, or null
  int64_t a_width, b_width, rows, columns;
  T *out, *bias;  // (rows, columns); (rows), what of `a` alone adds up to
};

template <class T>
struct WeightProducts {
  static constexpr int kTile = 32;   // rows and columns of a tile
  static constexpr int kNodes = 32;  // that are in shared memory at a time
  static constexpr int kShared = 2 * kNodes * kTile;

  const BackwardArgs<T>& args;

  GHN_DEVICE const Record& record() const { return args.problem.shape.record; }
  GHN_DEVICE int count() const { return 3 + int(record().messages); }

  // The sums of a chunk lie as the weights of backward do.
  GHN_DEVICE WeightProduct<T> at(int which, int64_t chunk) const {
    const Record& r = record();
    const int64_t N = args.problem.num_nodes, c = r.c;
    const PackedWeights<T> sums =
        PackedWeights<T>::at(args.partial + chunk * PackedWeights<T>::size(r), r);
    const Fields<const T> f = Fields<const T>::at(args.record, r, N, 0);
    const Factors<const T> d = Factors<const T>::at(args.factors, r, N, 0);
    switch (which) {
      case 0:
        return {d.gates, f.message, nullptr, 4 * c, c, 3 * c, c, sums.ih, sums.ih_b};
      case 1:
        return {d.gates + c, f.state, args.start, 4 * c, c, 3 * c, c, sums.hh, sums.hh_b};
      case 2:
        return {d.hidden, f.state, nullptr, r.hidden, c, r.hidden, c, sums.first, sums.first_b};
      case 3:
        return {d.sent, f.hidden, nullptr, r.messages * c, r.hidden, c, r.h[0], sums.second[0],
                sums.second_b[0]};
      default:
        return {d.sent + c,    f.hidden + r.h[0], nullptr, r.messages * c, r.hidden, c, r.h[1],
                sums.second[1], sums.second_b[1]};
    }
  }

  static GHN_INLINE int64_t tiles_of(int64_t width) { return (width + kTile - 1) / kTile; }

  static GHN_INLINE int64_t tiles(const Record& r) {
    const int64_t c = tiles_of(r.c), gates = tiles_of(3 * r.c);
    return 2 * gates * c + tiles_of(r.hidden) * c + c * tiles_of(r.h[0]) +
           (r.messages > 1 ? c * tiles_of(r.h[1]) : 0);
  }

  // Chunks that keep a GPU busy, in memory of at most about four million elements.
  static GHN_INLINE int64_t chunks(const Record& r, int64_t nodes) {
    constexpr int64_t kChunk = 128, kMost = 64, kElements = int64_t(1) << 22;
    const int64_t room = kElements / PackedWeights<T>::size(r);
    int64_t count = (nodes + kChunk - 1) / kChunk;
    count = count < kMost ? count : kMost;
    count = count < room ? count : room;
    return count < 1 ? 1 : count;
  }

  // Tile `number` of all products over the nodes of a chunk. `memory` has kShared elements.
  template <class Block>
  GHN_DEVICE void tile(const Block& block, int64_t number, int64_t chunk, T* memory) const {
    int which = 0;
    WeightProduct<T> p = at(0, chunk);
    while (which + 1 < count() && number >= tiles_of(p.rows) * tiles_of(p.columns)) {
      number -= tiles_of(p.rows) * tiles_of(p.columns);
      p = at(++which, chunk);
    }
    const int64_t row = number / tiles_of(p.columns) * kTile;
    const int64_t column = number % tiles_of(p.columns) * kTile;
    const int64_t N = args.problem.num_nodes, all = N * args.problem.sweeps;
    const int64_t share = (all + args.chunks - 1) / args.chunks;
    const int64_t first = chunk * share, last = first + share < all ? first + share : all;
    T* const left = memory;
    T* const right = memory + kNodes * kTile;
    // A thread has two rows and two columns.
    const int y = block.thread() / (kTile / 2) * 2, x = block.thread() % (kTile / 2) * 2;
    T sum[2][2] = {{T(0), T(0)}, {T(0), T(0)}}, bias[2] = {T(0), T(0)};
    int64_t sweep = first / N;
    for (int64_t begin = first; begin < last; begin += kNodes) {
      block.sync();
      GHN_UNROLL
      for (int i = 0; i < kNodes * kTile; i += kThreads) {
        const int at = i + block.thread(), across = at % kTile;
        const int64_t node = begin + at / kTile;
        const bool there = node < last;
        while (there && node >= (sweep + 1) * N) ++sweep;
        const int64_t v = node - sweep * N;
        left[at] = there && row + across < p.rows
                       ? p.a[sweep * N * Factors<T>::width(record()) + v * p.a_width + row + across]
                       : T(0);
        right[at] = there && column + across < p.columns
                        ? of_sweep(p, sweep)[v * p.b_width + column + across]
                        : T(0);
      }
      block.sync();
      GHN_UNROLL_4
      for (int k = 0; k < kNodes; ++k) {
        const T a[2] = {left[k * kTile + y], left[k * kTile + y + 1]};
        const T b[2] = {right[k * kTile + x], right[k * kTile + x + 1]};
        GHN_UNROLL
        for (int i = 0; i < 2; ++i) {
          sum[i][0] += a[i] * b[0];
          sum[i][1] += a[i] * b[1];
          bias[i] += a[i];
        }
      }
    }
    GHN_UNROLL
    for (int i = 0; i < 2; ++i) {
      if (row + y + i >= p.rows) continue;
      GHN_UNROLL
      for (int j = 0; j < 2; ++j) {
        if (column + x + j < p.columns) {
          p.out[(row + y + i) * p.columns + column + x + j] = sum[i][j];
        }
      }
      if (column == 0 && x == 0) p.bias[row + y + i] = bias[i];
    }
  }

 private:
  GHN_DEVICE const T* of_sweep(const WeightProduct<T>& p, int64_t sweep) const {
    if (p.start == nullptr) return p.b + sweep * args.problem.num_nodes * record().width;
    return sweep == 0 ? p.start : p.b + (sweep - 1) * args.problem.num_nodes * record().width;
  }
};

// The tiles of all products and chunks, shared by the blocks.
template <class T, class Block>
GHN_DEVICE void products_block(const Block& block, const BackwardArgs<T>& args, T* memory) {
  const WeightProducts<T> products{args};
  const int64_t tiles = WeightProducts<T>::tiles(products.record());
  for (int64_t i = block.index(); i < tiles * args.chunks; i += block.count()) {
    products.tile(block, i % tiles, i / tiles, memory);
  }
}

// One block of the gradients of the weights, the sum of all chunks.
template <class In, class T, class Block>
GHN_DEVICE void gradient_block(const Block& block, const BackwardArgs<T>& args, int which) {
  const Record& r = args.problem.shape.record;
  const int64_t size = PackedWeights<T>::size(r);
  one_weight_block<In>(
      args.problem.shape, args.grads, PackedWeights<T>::at(args.partial, r), true, which,
      [&](const auto& found) {
        const int64_t stride = int64_t(block.count()) * kThreads, columns = found.columns;
        for (int64_t i = int64_t(block.index()) * kThreads + block.thread();
             i < found.rows * columns; i += stride) {
          const T* const at =
              found.packed + (i / columns * found.row_step + i % columns * found.column_step);
          T sum = T(0);
          GHN_UNROLL_4
          for (int64_t chunk = 0; chunk < args.chunks; ++chunk) sum += at[chunk * size];
          found.given[i] = static_cast<In>(sum);
        }
      });
}

}  // namespace ghn::cuda
