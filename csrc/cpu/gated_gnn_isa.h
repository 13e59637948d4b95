// The kernels of the gated GNN on CPU. No include guard: gated_gnn_kernels.cpp includes this file
// once per instruction set, with GHN_ISA (a namespace) and GHN_BYTES (of a vector register).

namespace ghn {
namespace GHN_ISA {

template <class T>
struct Kernel {
  static constexpr int W = GHN_BYTES / sizeof(T);
  // Accumulators of an inner loop: as many as leave registers for the operands.
  static constexpr int kWide = GHN_BYTES == 64 ? 8 : 4;
  static constexpr int kTile = 4;  // nodes that share a pass over the weights
  typedef typename Vector<T, W>::type V;
  typedef NodeUpdate<T, W> Update;

  static GHN_INLINE V load(const T* at) {
    V v;
    __builtin_memcpy(&v, at, sizeof(V));
    return v;
  }
  static GHN_INLINE void store(T* at, V v) { __builtin_memcpy(at, &v, sizeof(V)); }

  // y[k][0 .. NB W) = start + sum_i x[k][i] w[i, 0 .. NB W), inputs ascending.
  template <int TILE, int NB>
  static void affine_block(const T* w, int64_t w_width, const T* bias, const T* const* x,
                           int64_t inputs, T* const* y, int64_t column) {
    V sum[TILE][NB];
    for (int k = 0; k < TILE; ++k) {
      for (int b = 0; b < NB; ++b) {
        sum[k][b] = load((bias ? bias : y[k]) + column + b * W);
      }
    }
    const T* row = w + column;
    for (int64_t i = 0; i < inputs; ++i, row += w_width) {
      V weight[NB];
      for (int b = 0; b < NB; ++b) weight[b] = load(row + b * W);
      for (int k = 0; k < TILE; ++k) {
        const T value = x[k][i];
        for (int b = 0; b < NB; ++b) sum[k][b] += weight[b] * value;
      }
    }
    for (int k = 0; k < TILE; ++k) {
      for (int b = 0; b < NB; ++b) store(y[k] + column + b * W, sum[k][b]);
    }
  }

  // y[k] = bias + x[k] W for TILE nodes; without a bias, y[k] += x[k] W.
  template <int TILE>
  static void affine_tile(const T* w, int64_t outputs, const T* bias, const T* const* x,
                          int64_t inputs, T* const* y) {
    constexpr int most = TILE == 1 ? kWide : (GHN_BYTES == 64 ? 4 : 2);
    int64_t j = 0;
    for (; j + most * W <= outputs; j += most * W) {
      affine_block<TILE, most>(w, outputs, bias, x, inputs, y, j);
    }
    if constexpr (most > 4) {
      if (j + 4 * W <= outputs) {
        affine_block<TILE, 4>(w, outputs, bias, x, inputs, y, j);
        j += 4 * W;
      }
    }
    if constexpr (most > 2) {
      if (j + 2 * W <= outputs) {
        affine_block<TILE, 2>(w, outputs, bias, x, inputs, y, j);
        j += 2 * W;
      }
    }
    for (; j < outputs; j += W) affine_block<TILE, 1>(w, outputs, bias, x, inputs, y, j);
  }

  static void affine(const T* w, int64_t outputs, const T* bias, const T* const* x, int64_t inputs,
                     T* const* y, int count) {
    int k = 0;
    for (; k + kTile <= count; k += kTile) {
      affine_tile<kTile>(w, outputs, bias, x + k, inputs, y + k);
    }
    for (; k < count; ++k) affine_tile<1>(w, outputs, bias, x + k, inputs, y + k);
  }

  // Rows of one array, for the nodes of a tile.
  struct Rows {
    T* at[kTile] = {};
    Rows(T* base, int64_t width, const int32_t* nodes, int count, int64_t shift = 0) {
      for (int k = 0; k < count; ++k) at[k] = base + nodes[k] * width + shift;
    }
    operator T* const*() { return at; }
    operator const T* const*() { return at; }
  };

  static void relu(T* row, int64_t width) {
    for (int64_t j = 0; j < width; j += W) store(row + j, Update::relu(load(row + j)));
  }

  // grad *= (value > 0)
  static void relu_backward(T* grad, const T* value, int64_t width) {
    for (int64_t j = 0; j < width; j += W) {
      store(grad + j, Update::relu_backward(load(grad + j), load(value + j)));
    }
  }

  // to[0 .. NB W) = sum of the messages along edges, and of the weighted ones along virtual edges.
  // MESSAGES 1: `from` has rows of C. 2: rows of both messages, 2 C.
  template <int MESSAGES, int NB>
  static void gather_block(const EdgeList& list, const T* inverse, const T* from, int64_t c,
                           int64_t begin, int64_t split, int64_t end, T* to, int64_t column) {
    V sum[NB];
    for (int b = 0; b < NB; ++b) sum[b] = V{};
    for (int64_t e = begin; e < split; ++e) {
      const T* row = from + list.node[e] * MESSAGES * c + column;
      for (int b = 0; b < NB; ++b) {
        sum[b] += load(row + b * W);
        if constexpr (MESSAGES == 2) sum[b] += load(row + c + b * W);
      }
    }
    if constexpr (MESSAGES == 2) {
      for (int64_t e = split; e < end; ++e) {
        const T* row = from + list.node[e] * 2 * c + c + column;
        const T weight = inverse[list.distance[e]];
        for (int b = 0; b < NB; ++b) sum[b] += weight * load(row + b * W);
      }
    }
    for (int b = 0; b < NB; ++b) store(to + column + b * W, sum[b]);
  }

  template <int MESSAGES>
  static void gather(const Walk<T>& walk, int32_t v, T* to) {
    const int64_t c = walk.record.c;
    const int64_t begin = walk.gather_ptr[v], split = walk.gather_split[v];
    const int64_t end = walk.gather_ptr[v + 1];
    int64_t j = 0;
    for (; j + 4 * W <= c; j += 4 * W) {
      gather_block<MESSAGES, 4>(*walk.gather, walk.inverse, walk.fields.sent, c, begin, split, end,
                                to, j);
    }
    for (; j + 2 * W <= c; j += 2 * W) {
      gather_block<MESSAGES, 2>(*walk.gather, walk.inverse, walk.fields.sent, c, begin, split, end,
                                to, j);
    }
    for (; j < c; j += W) {
      gather_block<MESSAGES, 1>(*walk.gather, walk.inverse, walk.fields.sent, c, begin, split, end,
                                to, j);
    }
  }

  // Gradients of both messages: to[0 .. C) along edges, to[C .. 2C) along all, weighted.
  template <int NB>
  static void scatter_block(const Walk<T>& walk, int32_t v, T* to, int64_t column) {
    const int64_t c = walk.record.c;
    const EdgeList& list = *walk.scatter;
    V near[NB], far[NB];
    for (int b = 0; b < NB; ++b) near[b] = far[b] = V{};
    for (int64_t e = walk.scatter_ptr[v]; e < walk.scatter_split[v]; ++e) {
      const T* row = walk.d_message + list.node[e] * c + column;
      for (int b = 0; b < NB; ++b) near[b] += load(row + b * W);
    }
    if (walk.record.messages == 2) {
      for (int64_t e = walk.scatter_split[v]; e < walk.scatter_ptr[v + 1]; ++e) {
        const T* row = walk.d_message + list.node[e] * c + column;
        const T weight = walk.inverse[list.distance[e]];
        for (int b = 0; b < NB; ++b) far[b] += weight * load(row + b * W);
      }
      for (int b = 0; b < NB; ++b) store(to + c + column + b * W, near[b] + far[b]);
    }
    for (int b = 0; b < NB; ++b) store(to + column + b * W, near[b]);
  }

  static void scatter(const Walk<T>& walk, int32_t v, T* to) {
    const int64_t c = walk.record.c;
    int64_t j = 0;
    for (; j + 2 * W <= c; j += 2 * W) scatter_block<2>(walk, v, to, j);
    for (; j < c; j += W) scatter_block<1>(walk, v, to, j);
  }

  // The first three gates hold what the state adds to r, z and n.
  static void gates(T* gate, const T* from_message, const T* state, T* out, int64_t c) {
    for (int64_t j = 0; j < c; j += W) {
      const V hn = load(gate + 2 * c + j);
      const auto g = Update::gru(load(from_message + j), load(from_message + c + j),
                                 load(from_message + 2 * c + j), load(gate + j),
                                 load(gate + c + j), hn, load(state + j));
      store(gate + j, g.r);
      store(gate + c + j, g.z);
      store(gate + 3 * c + j, g.n);
      store(out + j, g.out);
    }
  }

  static void prepare(const Walk<T>& walk, int64_t begin, int64_t end) {
    const int64_t c = walk.record.c;
    for (int64_t v = begin; v < end; v += kTile) {
      const int count = int(end - v < kTile ? end - v : kTile);
      const T* x[kTile] = {};
      T* y[kTile] = {};
      for (int k = 0; k < count; ++k) {
        x[k] = walk.state + (v + k) * c;
        y[k] = walk.fields.gates + (v + k) * 4 * c;
      }
      affine(walk.weights.hh, 3 * c, walk.weights.hh_b, x, walk.channels, y, count);
    }
  }

  static void visit_tile(const Walk<T>& walk, const int32_t* nodes, int count) {
    const Record& record = walk.record;
    const PackedWeights<T>& weights = walk.weights;
    const int64_t c = record.c;
    for (int k = 0; k < count; ++k) {
      T* to = walk.fields.message + nodes[k] * c;
      record.messages == 2 ? gather<2>(walk, nodes[k], to) : gather<1>(walk, nodes[k], to);
    }
    Rows message(walk.fields.message, c, nodes, count);
    Rows state(walk.fields.state, c, nodes, count);
    alignas(64) T sums[kTile][3 * kMaxChannels];
    T* sum[kTile] = {};
    for (int k = 0; k < count; ++k) sum[k] = sums[k];
    affine(weights.ih, 3 * c, weights.ih_b, message, walk.channels, sum, count);
    for (int k = 0; k < count; ++k) {
      gates(walk.fields.gates + nodes[k] * 4 * c, sum[k], walk.state + nodes[k] * c, state.at[k],
            c);
    }
    Rows hidden(walk.fields.hidden, record.hidden, nodes, count);
    affine(weights.first, record.hidden, weights.first_b, state, walk.channels, hidden, count);
    for (int k = 0; k < count; ++k) relu(hidden.at[k], record.hidden);
    for (int i = 0; i < record.messages; ++i) {
      Rows layer(walk.fields.hidden, record.hidden, nodes, count, i == 0 ? 0 : record.h[0]);
      Rows sent(walk.fields.sent, record.messages * c, nodes, count, i * c);
      affine(weights.second[i], c, weights.second_b[i], layer, walk.hidden[i], sent, count);
      for (int k = 0; k < count; ++k) relu(sent.at[k], c);
    }
  }

  static void visit(const Walk<T>& walk, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += kTile) {
      visit_tile(walk, walk.order + i, int(end - i < kTile ? end - i : kTile));
    }
  }

  static void visit_backward_tile(const Walk<T>& walk, const int32_t* nodes, int count) {
    const Record& record = walk.record;
    const PackedWeights<T>& weights = walk.weights;
    const int64_t c = record.c;
    Rows d_state(walk.d_state, c, nodes, count);
    Rows d_hidden(walk.d.hidden, record.hidden, nodes, count);
    for (int k = 0; k < count; ++k) {
      T* d_sent = walk.d.sent + nodes[k] * record.messages * c;
      scatter(walk, nodes[k], d_sent);
      relu_backward(d_sent, walk.fields.sent + nodes[k] * record.messages * c, record.messages * c);
      for (int64_t j = 0; j < record.hidden; j += W) store(d_hidden.at[k] + j, V{});
    }
    for (int i = 0; i < record.messages; ++i) {
      Rows d_sent(walk.d.sent, record.messages * c, nodes, count, i * c);
      Rows layer(walk.d.hidden, record.hidden, nodes, count, i == 0 ? 0 : record.h[0]);
      affine(weights.second[i], record.h[i], nullptr, d_sent, walk.channels, layer, count);
    }
    for (int k = 0; k < count; ++k) {
      relu_backward(d_hidden.at[k], walk.fields.hidden + nodes[k] * record.hidden, record.hidden);
    }
    affine(weights.first, c, nullptr, d_hidden, record.hidden, d_state, count);
    for (int k = 0; k < count; ++k) {
      const T* gate = walk.fields.gates + nodes[k] * 4 * c;
      const T* state = walk.state + nodes[k] * c;
      T* d_gates = walk.d.gates + nodes[k] * 4 * c;
      T* d_message = walk.d_message + nodes[k] * c;
      for (int64_t j = 0; j < c; j += W) {
        const auto d = Update::gru_backward(load(d_state.at[k] + j), load(state + j),
                                            load(gate + j), load(gate + c + j),
                                            load(gate + 3 * c + j), load(gate + 2 * c + j));
        store(d_gates + j, d.n);
        store(d_gates + c + j, d.r);
        store(d_gates + 2 * c + j, d.z);
        store(d_gates + 3 * c + j, d.hn);
        store(d_state.at[k] + j, d.h);
        store(d_message + j, V{});
      }
    }
    Rows d_gates(walk.d.gates, 4 * c, nodes, count);
    Rows d_message(walk.d_message, c, nodes, count);
    affine(weights.ih, c, nullptr, d_gates, 3 * c, d_message, count);
  }

  static void visit_backward(const Walk<T>& walk, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += kTile) {
      visit_backward_tile(walk, walk.order + i, int(end - i < kTile ? end - i : kTile));
    }
  }

  static void finish_backward(const Walk<T>& walk, int64_t begin, int64_t end) {
    const int64_t c = walk.record.c;
    for (int64_t v = begin; v < end; v += kTile) {
      const int count = int(end - v < kTile ? end - v : kTile);
      const T* x[kTile] = {};
      T* y[kTile] = {};
      for (int k = 0; k < count; ++k) {
        x[k] = walk.d.gates + (v + k) * 4 * c + c;
        y[k] = walk.d_state + (v + k) * c;
      }
      affine(walk.weights.hh, c, nullptr, x, 3 * c, y, count);
    }
  }

  template <int NB>
  static void outer_block(T* out, const T* a, int64_t a_width, const T* b, int64_t b_width,
                          int64_t rows, int64_t columns) {
    V sum[kWide][NB];
    for (int o = 0; o < kWide; ++o) {
      for (int j = 0; j < NB; ++j) sum[o][j] = V{};
    }
    for (int64_t r = 0; r < rows; ++r, a += a_width, b += b_width) {
      V value[NB];
      for (int j = 0; j < NB; ++j) value[j] = load(b + j * W);
      for (int o = 0; o < kWide; ++o) {
        for (int j = 0; j < NB; ++j) sum[o][j] += value[j] * a[o];
      }
    }
    for (int o = 0; o < kWide; ++o) {
      for (int j = 0; j < NB; ++j) {
        T* at = out + o * columns + j * W;
        store(at, load(at) + sum[o][j]);
      }
    }
  }

  static void outer(T* out, T* bias, const T* a, int64_t a_width, const T* b, int64_t b_width,
                    int64_t rows, int64_t outputs, int64_t columns) {
    for (int64_t o = 0; o < outputs; o += kWide) {
      int64_t j = 0;
      for (; j + 2 * W <= columns; j += 2 * W) {
        outer_block<2>(out + o * columns + j, a + o, a_width, b + j, b_width, rows, columns);
      }
      for (; j < columns; j += W) {
        outer_block<1>(out + o * columns + j, a + o, a_width, b + j, b_width, rows, columns);
      }
    }
    for (int64_t o = 0; o < outputs; o += W) {
      V sum = V{};
      for (int64_t r = 0; r < rows; ++r) sum += load(a + r * a_width + o);
      store(bias + o, load(bias + o) + sum);
    }
  }

  static Kernels<T> all() {
    return {&prepare, &visit, &visit_backward, &finish_backward, &outer};
  }
};

}  // namespace GHN_ISA
}  // namespace ghn
