// What a block of threads does for attention within graphs. `Block` is the block: number of the
// thread, number of the block along queries and heads, and a barrier; D the width of a head, rounded
// up to a multiple of 8.
//
// A thread has one query, or one key, in registers, and goes through the others of its graph in
// ascending order, which all threads read from shared memory at the same time. So no sum is shared
// between threads but those of the table's gradient: each thread has its own in shared memory,
// beside those of others, and they are added up in one order.
#pragma once

#include <cmath>

#include "graph_attention.h"

namespace ghn::cuda {

struct AttentionTile {
  int64_t first, nodes, pair, row;  // of the graph; and place of the first query in it
};

// The tile that a block has.
GHN_DEVICE AttentionTile attention_tile(const Graphs& graphs, int64_t number) {
  int64_t pair = graphs.pair;
  for (int32_t g = 0; g < graphs.count; ++g) {
    const int64_t nodes = graphs.first[g + 1] - graphs.first[g], tiles = Graphs::tiles_of(nodes);
    if (number < tiles) return {graphs.first[g], nodes, pair, number * kAttentionThreads};
    number -= tiles;
    pair += nodes * nodes;
  }
  return {0, 0, 0, 0};
}

template <int D>
struct AttentionRow {
  float at[D];

  // Elements [0, width) of a row, zeros behind them.
  static GHN_DEVICE AttentionRow read(const float* from, int64_t width, bool inside, float factor) {
    AttentionRow row;
    GHN_UNROLL
    for (int k = 0; k < D; ++k) row.at[k] = inside && k < width ? from[k] * factor : 0.0f;
    return row;
  }

  GHN_DEVICE void write(float* to, int64_t width, float factor) const {
    GHN_UNROLL
    for (int k = 0; k < D; ++k) {
      if (k < width) to[k] = at[k] * factor;
    }
  }

  GHN_DEVICE float dot(const float* other) const {
    float sum = 0.0f;
    GHN_UNROLL
    for (int k = 0; k < D; ++k) sum += at[k] * other[k];
    return sum;
  }

  GHN_DEVICE void add(float weight, const float* other) {
    GHN_UNROLL
    for (int k = 0; k < D; ++k) at[k] += weight * other[k];
  }
};

// Where one head of one graph lies.
struct AttentionPlace {
  const AttentionArgs& args;
  AttentionTile tile;
  int64_t head;

  GHN_DEVICE int64_t part() const { return args.heads * args.width; }
  // Query (0), key (1) or value (2) of a node of the graph, in qkv and its gradient.
  GHN_DEVICE int64_t qkv(int64_t node, int which) const {
    return ((tile.first + node) * 3 + which) * part() + head * args.width;
  }
  GHN_DEVICE int64_t out(int64_t node) const {
    return (tile.first + node) * part() + head * args.width;
  }
  GHN_DEVICE int64_t scalar(int64_t node) const { return (tile.first + node) * args.heads + head; }

  GHN_DEVICE int code(int64_t query, int64_t key) const {
    const int64_t at = tile.pair + query * tile.nodes + key;
    return args.wide ? static_cast<const int16_t*>(args.codes)[at]
                     : static_cast<const uint8_t*>(args.codes)[at];
  }
};

// Biases of all codes for one head.
template <class Block>
GHN_DEVICE void place_biases(const Block& block, const AttentionPlace& place, float* bias) {
  for (int64_t r = block.thread(); r < place.args.rows; r += kAttentionThreads) {
    bias[r] = place.args.table[r * place.args.heads + place.head];
  }
}

// Rows [begin, begin + kAttentionStep) of a matrix that `from` gives each row of, zeros behind.
template <int D, class Block, class From>
GHN_DEVICE void place_rows(const Block& block, int64_t begin, int64_t nodes, int64_t width,
                           From from, float factor, float* to) {
  for (int n = block.thread(); n < kAttentionStep * D; n += kAttentionThreads) {
    const int64_t row = begin + n / D;
    const int k = n % D;
    to[n] = row < nodes && k < width ? from(row)[k] * factor : 0.0f;
  }
}

// Codes of the tile's queries with keys [begin, begin + kAttentionStep).
template <class Block>
GHN_DEVICE void place_codes(const Block& block, const AttentionPlace& place, int64_t begin,
                            int16_t* to) {
  for (int n = block.thread(); n < kAttentionThreads * kAttentionStep; n += kAttentionThreads) {
    const int row = n / kAttentionStep, column = n % kAttentionStep;
    const int64_t query = place.tile.row + row, key = begin + column;
    const bool inside = query < place.tile.nodes && key < place.tile.nodes;
    to[row * AttentionShared::kRow + column] = int16_t(inside ? place.code(query, key) : -1);
  }
}

// Keys and values from `begin` on, and the codes of the tile's queries with them.
template <int D, class Block>
GHN_DEVICE void place_keys(const Block& block, const AttentionPlace& place, int64_t begin,
                           float* key, float* value, int16_t* codes) {
  const AttentionArgs& args = place.args;
  const int64_t nodes = place.tile.nodes;
  place_rows<D>(block, begin, nodes, args.width,
                [&](int64_t j) { return args.qkv + place.qkv(j, 1); }, 1.0f, key);
  place_rows<D>(block, begin, nodes, args.width,
                [&](int64_t j) { return args.qkv + place.qkv(j, 2); }, 1.0f, value);
  place_codes(block, place, begin, codes);
}

// A code that the table does not have yields NaN: checking them all first would have to wait.
GHN_DEVICE float bias_of(const float* bias, int code, int64_t rows) {
  return code >= 0 && code < rows ? bias[code] : NAN;
}

template <int D, class Block>
GHN_DEVICE void attention_forward(const Block& block, const AttentionArgs& args,
                                  const Graphs& graphs, float* shared) {
  const AttentionPlace place{args, attention_tile(graphs, block.index()), block.head()};
  const int64_t nodes = place.tile.nodes, query = place.tile.row + block.thread();
  const bool is_query = query < nodes;
  float *bias = shared, *key = bias + args.rows, *value = key + kAttentionStep * D;
  auto* codes = reinterpret_cast<int16_t*>(value + kAttentionStep * D);
  const int16_t* own = codes + block.thread() * AttentionShared::kRow;
  place_biases(block, place, bias);
  const auto q = AttentionRow<D>::read(args.qkv + place.qkv(is_query ? query : 0, 0), args.width,
                                       is_query, args.scale);
  AttentionRow<D> sums{};
  float most = -INFINITY, total = 0.0f;
  for (int64_t begin = 0; begin < nodes; begin += kAttentionStep) {
    block.sync();
    place_keys<D>(block, place, begin, key, value, codes);
    block.sync();
    const int count = int(nodes - begin < kAttentionStep ? nodes - begin : kAttentionStep);
    for (int j = 0; is_query && j < count; ++j) {
      const float logit = q.dot(key + j * D) + bias_of(bias, own[j], args.rows);
      // Sums are scaled anew where a larger logit comes; NaN stays.
      if (!(logit <= most)) {
        const float fix = expf(most - logit);
        total *= fix;
        GHN_UNROLL
        for (int k = 0; k < D; ++k) sums.at[k] *= fix;
        most = logit;
      }
      const float weight = expf(logit - most);
      total += weight;
      sums.add(weight, value + j * D);
    }
  }
  if (!is_query) return;
  sums.write(args.out + place.out(query), args.width, 1.0f / total);
  args.logsum[place.scalar(query)] = most + logf(total);
}

// Gradients of queries, and of the table from their pairs.
template <int D, class Block>
GHN_DEVICE void attention_queries(const Block& block, const AttentionArgs& args,
                                  const Graphs& graphs, float* shared) {
  const AttentionPlace place{args, attention_tile(graphs, block.index()), block.head()};
  const int64_t nodes = place.tile.nodes, query = place.tile.row + block.thread();
  const bool is_query = query < nodes;
  float *bias = shared, *key = bias + args.rows, *value = key + kAttentionStep * D;
  auto* codes = reinterpret_cast<int16_t*>(value + kAttentionStep * D);
  const int16_t* own = codes + block.thread() * AttentionShared::kRow;
  float* of_codes = value + kAttentionStep * D + AttentionShared::codes();  // (R, threads)
  place_biases(block, place, bias);
  for (int64_t r = 0; r < args.rows; ++r) of_codes[r * kAttentionThreads + block.thread()] = 0.0f;
  const int64_t at = is_query ? query : 0;
  const auto q =
      AttentionRow<D>::read(args.qkv + place.qkv(at, 0), args.width, is_query, args.scale);
  const auto grad = AttentionRow<D>::read(args.grad + place.out(at), args.width, is_query, 1.0f);
  const float mean = args.mean[place.scalar(at)], logsum = args.logsum[place.scalar(at)];
  AttentionRow<D> sums{};
  for (int64_t begin = 0; begin < nodes; begin += kAttentionStep) {
    block.sync();
    place_keys<D>(block, place, begin, key, value, codes);
    block.sync();
    const int count = int(nodes - begin < kAttentionStep ? nodes - begin : kAttentionStep);
    for (int j = 0; is_query && j < count; ++j) {
      const int code = own[j];
      const float weight = expf(q.dot(key + j * D) + bias_of(bias, code, args.rows) - logsum);
      const float slope = weight * (grad.dot(value + j * D) - mean);
      sums.add(slope, key + j * D);
      if (code >= 0 && code < args.rows) {
        of_codes[code * kAttentionThreads + block.thread()] += slope;
      }
    }
  }
  if (is_query) sums.write(args.grad_qkv + place.qkv(query, 0), args.width, args.scale);
  block.sync();
  float* part = args.parts + ((graphs.tile + block.index()) * args.heads + place.head) * args.rows;
  for (int64_t r = block.thread(); r < args.rows; r += kAttentionThreads) {
    float sum = 0.0f;
    for (int t = 0; t < kAttentionThreads; ++t) sum += of_codes[r * kAttentionThreads + t];
    part[r] = sum;
  }
}

// Gradients of keys and values.
template <int D, class Block>
GHN_DEVICE void attention_keys(const Block& block, const AttentionArgs& args, const Graphs& graphs,
                               float* shared) {
  const AttentionPlace place{args, attention_tile(graphs, block.index()), block.head()};
  const int64_t nodes = place.tile.nodes, at = place.tile.row + block.thread();
  const bool is_key = at < nodes;
  float *bias = shared, *query = bias + args.rows, *grad = query + kAttentionStep * D;
  float *mean = grad + kAttentionStep * D, *logsum = mean + kAttentionStep;
  place_biases(block, place, bias);
  const int64_t own = is_key ? at : 0;
  const auto key = AttentionRow<D>::read(args.qkv + place.qkv(own, 1), args.width, is_key, 1.0f);
  const auto value = AttentionRow<D>::read(args.qkv + place.qkv(own, 2), args.width, is_key, 1.0f);
  AttentionRow<D> of_key{}, of_value{};
  for (int64_t begin = 0; begin < nodes; begin += kAttentionStep) {
    block.sync();
    place_rows<D>(block, begin, nodes, args.width,
                  [&](int64_t i) { return args.qkv + place.qkv(i, 0); }, args.scale, query);
    place_rows<D>(block, begin, nodes, args.width,
                  [&](int64_t i) { return args.grad + place.out(i); }, 1.0f, grad);
    for (int n = block.thread(); n < kAttentionStep; n += kAttentionThreads) {
      const int64_t i = begin + n < nodes ? begin + n : 0;
      mean[n] = args.mean[place.scalar(i)];
      logsum[n] = args.logsum[place.scalar(i)];
    }
    block.sync();
    const int count = int(nodes - begin < kAttentionStep ? nodes - begin : kAttentionStep);
    for (int i = 0; is_key && i < count; ++i) {
      const float extra = bias_of(bias, place.code(begin + i, at), args.rows);
      const float weight = expf(key.dot(query + i * D) + extra - logsum[i]);
      const float slope = weight * (value.dot(grad + i * D) - mean[i]);
      of_value.add(weight, grad + i * D);
      of_key.add(slope, query + i * D);
    }
  }
  if (!is_key) return;
  of_key.write(args.grad_qkv + place.qkv(at, 1), args.width, 1.0f);
  of_value.write(args.grad_qkv + place.qkv(at, 2), args.width, 1.0f);
}

}  // namespace ghn::cuda
