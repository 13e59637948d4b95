// Sizes of the gated GNN, and where its arrays and weights lie in memory, on every back end.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace ghn {

// Widest row of node features that the kernels hold.
constexpr int64_t kMaxChannels = 1024;

// Widths of the rows in memory: padded to 16 elements, with zeros behind the last one.
GHN_INLINE int64_t padded(int64_t width) { return (width + 15) / 16 * 16; }

// What forward keeps of a sweep: arrays with a row per node, one behind the other.
//
//   state (C), message (C), gates r z hn n (4 C), hidden (H_1 + H_2), sent (messages * C)
struct Record {
  int64_t c, h[2], messages, hidden, width;

  static GHN_INLINE Record of(int64_t channels, int64_t h0, int64_t h1, int64_t messages) {
    Record record;
    record.c = padded(channels);
    record.h[0] = padded(h0);
    record.h[1] = messages > 1 ? padded(h1) : 0;
    record.messages = messages;
    record.hidden = record.h[0] + record.h[1];
    record.width = 6 * record.c + record.hidden + messages * record.c;
    return record;
  }
};

template <class T>
struct Fields {
  T *state, *message, *gates, *hidden, *sent;

  // `base` holds the arrays of `rows` nodes; the result points at row `first` of each.
  static GHN_INLINE Fields at(T* base, const Record& record, int64_t rows, int64_t first) {
    Fields f;
    f.state = base + first * record.c;
    base += rows * record.c;
    f.message = base + first * record.c;
    base += rows * record.c;
    f.gates = base + first * 4 * record.c;
    base += rows * 4 * record.c;
    f.hidden = base + first * record.hidden;
    base += rows * record.hidden;
    f.sent = base + first * record.messages * record.c;
    return f;
  }
};

// What backward finds in a sweep, likewise; times the record of forward it gives the gradients of
// the weights.
//
//   gates n r z hn (4 C), hidden (H_1 + H_2), sent (messages * C)
template <class T>
struct Factors {
  T *gates, *hidden, *sent;

  static GHN_INLINE int64_t width(const Record& record) {
    return 4 * record.c + record.hidden + record.messages * record.c;
  }

  static GHN_INLINE Factors at(T* base, const Record& record, int64_t rows, int64_t first) {
    Factors f;
    f.gates = base + first * 4 * record.c;
    base += rows * 4 * record.c;
    f.hidden = base + first * record.hidden;
    base += rows * record.hidden;
    f.sent = base + first * record.messages * record.c;
    return f;
  }
};

// Sizes of the weights, without and with padding.
struct Shape {
  int64_t channels, hidden[2], messages;
  Record record;
};

// Weights, padded with zeros. For the forward rows are inputs and columns outputs; for the backward
// rows are outputs, and the gates of `ih` come in the order of their gradients.
template <class T>
struct PackedWeights {
  T *ih, *hh;                  // forward (C, 3 C): r z n; backward (3 C, C): n r z, and r z n
  T *ih_b, *hh_b;              // (3 C), in the same order
  T *first, *first_b;          // forward (C, H_1 + H_2), backward (H_1 + H_2, C); (H_1 + H_2)
  T *second[2], *second_b[2];  // forward (H_k, C), backward (C, H_k); (C)

  static GHN_INLINE int64_t size(const Record& r) {
    return 6 * r.c * r.c + 6 * r.c + 2 * r.hidden * r.c + r.hidden + 2 * r.c;
  }

  static GHN_INLINE PackedWeights at(T* base, const Record& r) {
    PackedWeights w;
    w.ih = base, base += 3 * r.c * r.c;
    w.hh = base, base += 3 * r.c * r.c;
    w.ih_b = base, base += 3 * r.c;
    w.hh_b = base, base += 3 * r.c;
    w.first = base, base += r.hidden * r.c;
    w.first_b = base, base += r.hidden;
    for (int k = 0; k < 2; ++k) {
      w.second[k] = base, base += r.h[k] * r.c;
      w.second_b[k] = base, base += r.c;
    }
    return w;
  }
};

// A weight as the op gets it, or a gate of one: its element (row, column) is element
// row * row_step + column * column_step of `packed`.
template <class Given, class T>
struct WeightBlock {
  Given* given;  // (rows, columns)
  T* packed;
  int64_t rows, columns, row_step, column_step;
};

// Call run(block) for all blocks of the weights: `given` lists them in the order of the schema.
template <class Given, class T, class Run>
GHN_INLINE void each_weight_block(const Shape& shape, void* const* given,
                                  const PackedWeights<T>& packed, bool backward, const Run& run) {
  typedef WeightBlock<Given, T> Block;
  const Record& r = shape.record;
  const int64_t c = shape.channels, cp = r.c;
  void* const* const gru = given + 4 * shape.messages;
  for (int64_t gate = 0; gate < 3; ++gate) {
    const int64_t turned = backward ? (gate + 1) % 3 : gate;  // r z n -> n r z
    Given* const ih = static_cast<Given*>(gru[0]) + gate * c * c;
    Given* const hh = static_cast<Given*>(gru[1]) + gate * c * c;
    if (backward) {
      run(Block{ih, packed.ih + turned * cp * cp, c, c, cp, 1});
      run(Block{hh, packed.hh + gate * cp * cp, c, c, cp, 1});
    } else {
      run(Block{ih, packed.ih + gate * cp, c, c, 1, 3 * cp});
      run(Block{hh, packed.hh + gate * cp, c, c, 1, 3 * cp});
    }
    run(Block{static_cast<Given*>(gru[2]) + gate * c, packed.ih_b + turned * cp, 1, c, 0, 1});
    run(Block{static_cast<Given*>(gru[3]) + gate * c, packed.hh_b + gate * cp, 1, c, 0, 1});
  }
  for (int64_t k = 0; k < shape.messages; ++k) {
    const int64_t h = shape.hidden[k], shift = k == 0 ? 0 : r.h[0];
    Given* const first = static_cast<Given*>(given[4 * k]);
    Given* const first_b = static_cast<Given*>(given[4 * k + 1]);
    Given* const second = static_cast<Given*>(given[4 * k + 2]);
    Given* const second_b = static_cast<Given*>(given[4 * k + 3]);
    if (backward) {
      run(Block{first, packed.first + shift * cp, h, c, cp, 1});
      run(Block{second, packed.second[k], c, h, r.h[k], 1});
    } else {
      run(Block{first, packed.first + shift, h, c, 1, r.hidden});
      run(Block{second, packed.second[k], c, h, 1, cp});
    }
    run(Block{first_b, packed.first_b + shift, 1, h, 0, 1});
    run(Block{second_b, packed.second_b[k], 1, c, 0, 1});
  }
}

// Copies a block into the packed weights, of which a caller takes every `row_stride`-th row and
// every `column_stride`-th column.
struct PackBlock {
  int64_t row = 0, row_stride = 1, column = 0, column_stride = 1;

  template <class Given, class T>
  GHN_INLINE void operator()(const WeightBlock<Given, T>& block) const {
    for (int64_t r = row; r < block.rows; r += row_stride) {
      for (int64_t c = column; c < block.columns; c += column_stride) {
        block.packed[r * block.row_step + c * block.column_step] =
            static_cast<T>(block.given[r * block.columns + c]);
      }
    }
  }
};

}  // namespace ghn
