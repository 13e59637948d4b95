// Attention within each graph of a batch, with a bias by the code of a pair; see
// ghn_fast/ops/graph_attention.py for the formula.
//
// A task is one head of one graph, whose logits of some queries at a time stay in the cache. Of the
// size of all pairs there are only the codes, transposed for the forward pass. Tasks know nothing of
// each other, and the gradient of the table is summed over the graphs in their order, so that all
// numbers are the same with every number of threads, and those of a graph in every batch.
//
// Floor: 2 d multiplications and one exp a pair and head, and for small d the look-up of its bias.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <tuple>
#include <vector>

#include "../common/checks.h"
#include "../common/parallel.h"
#include "../common/torch_call.h"
#include "graph_attention_kernels.h"

namespace ghn {
namespace {

// Pairs that are worth a thread.
constexpr int64_t kGrain = int64_t(1) << 15;

struct Batch {
  Tensor qkv, codes, table;           // table (H, R)
  std::vector<int64_t> first, pairs;  // of each graph, and at the end
  int64_t heads, width, rows;

  Batch(const Tensor& given, const Tensor& code, IntArrayRef offsets, const Tensor& bias) {
    check_device(given, kCPU, "qkv");
    check_dtype(given, kFloat, "qkv");
    GHN_CHECK(given.dim() == 4 && given.size(1) == 3, "qkv: got shape ", given.sizes(),
              ", needs (N, 3, H, d)");
    check_device(bias, kCPU, "table");
    check_dtype(bias, kFloat, "table");
    heads = given.size(2), width = given.size(3);
    GHN_CHECK(heads > 0 && width > 0, "qkv: got shape ", given.sizes(), ", needs (N, 3, H, d)");
    GHN_CHECK(bias.dim() == 2 && bias.size(1) == heads, "table: got shape ", bias.sizes(),
              ", needs (R, ", heads, ")");
    rows = bias.size(0);
    check_device(code, kCPU, "codes");
    GHN_CHECK(code.scalar_type() == kByte || code.scalar_type() == kShort, "codes: got ",
              code.scalar_type(), ", needs uint8 or int16");
    GHN_CHECK(!offsets.empty() && offsets[0] == 0 && offsets.back() == given.size(0),
              "offsets: got ", offsets, ", needs numbers that ascend from 0 to ", given.size(0));
    pairs.push_back(0);
    for (size_t g = 0; g + 1 < offsets.size(); ++g) {
      GHN_CHECK(offsets[g + 1] >= offsets[g], "offsets: got ", offsets,
                ", needs numbers that ascend from 0 to ", given.size(0));
      const int64_t size = offsets[g + 1] - offsets[g];
      pairs.push_back(pairs.back() + size * size);
    }
    first.assign(offsets.begin(), offsets.end());
    GHN_CHECK(code.dim() == 1 && code.size(0) == pairs.back(), "codes: got shape ", code.sizes(),
              ", needs (", pairs.back(), ",)");
    qkv = given.contiguous();
    codes = code.contiguous();
    table = bias.t().contiguous();
    check_codes();
  }

  int64_t graphs() const { return int64_t(first.size()) - 1; }
  int64_t size(int64_t g) const { return first[size_t(g) + 1] - first[size_t(g)]; }
  int64_t stride() const { return 3 * heads * width; }
  bool wide() const { return codes.scalar_type() == kShort; }

  // A look-up outside of the table would read anything.
  void check_codes() const {
    const int64_t count = codes.numel();
    int64_t low = 0, high = 0;
    if (wide()) {
      const int16_t* data = codes.const_data_ptr<int16_t>();
      for (int64_t i = 0; i < count; ++i) {
        low = data[i] < low ? data[i] : low;
        high = data[i] > high ? data[i] : high;
      }
    } else {
      const uint8_t* data = codes.const_data_ptr<uint8_t>();
      for (int64_t i = 0; i < count; ++i) high = data[i] > high ? data[i] : high;
    }
    GHN_CHECK(count == 0 || (low >= 0 && high < rows), "codes: got codes from ", low, " to ", high,
              ", needs codes from 0 to ", rows - 1);
  }
};

int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Codes of each graph by keys, as AttentionQueries has them.
struct QueryCodes {
  std::vector<char> memory;
  std::vector<int64_t> first;  // of each graph, in bytes

  QueryCodes(const Batch& batch, int64_t lanes) {
    int64_t all = 0;
    for (int64_t g = 0; g < batch.graphs(); ++g) {
      const int64_t n = batch.size(g);
      first.push_back(all);
      all += round_up(n, lanes) * (batch.wide() ? 2 * n : round_up(n, 4));
    }
    memory.resize(size_t(all));
    parallel_for(0, batch.graphs(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t g = begin; g < end; ++g) {
        const int64_t n = batch.size(g), padded = round_up(n, lanes);
        char* to = memory.data() + first[size_t(g)];
        if (batch.wide()) {
          const int16_t* from = batch.codes.const_data_ptr<int16_t>() + batch.pairs[size_t(g)];
          for (int64_t i = 0; i < n; ++i, from += n) {
            for (int64_t j = 0; j < n; ++j) std::memcpy(to + (j * padded + i) * 2, from + j, 2);
          }
        } else {
          const uint8_t* from = batch.codes.const_data_ptr<uint8_t>() + batch.pairs[size_t(g)];
          for (int64_t i = 0; i < n; ++i, from += n) {
            int64_t j = 0;
            for (; j + 4 <= n; j += 4) std::memcpy(to + j * padded + i * 4, from + j, 4);
            if (j < n) std::memcpy(to + j * padded + i * 4, from + j, size_t(n - j));
          }
        }
      }
    });
  }
};

// One head of one graph as the forward pass reads it, with memory of its own.
struct Queries {
  AttentionQueries head;
  std::vector<float> query, key, value, bias;

  Queries(const Batch& batch, const QueryCodes& codes, int64_t g, int64_t h, int lanes) {
    const int64_t n = batch.size(g), d = batch.width, part = batch.heads * d;
    const int64_t padded = round_up(n, lanes);
    query.assign(size_t(d * padded), 0.0f);
    constexpr int64_t keys = AttentionQueries::kKeys;
    key.assign(size_t(round_up(n, keys) * d), 0.0f);
    value.resize(size_t(n * d));
    bias.assign(size_t(std::max(batch.rows, AttentionQueries::kTable)), 0.0f);
    const float* table = batch.table.const_data_ptr<float>() + h * batch.rows;
    std::copy(table, table + batch.rows, bias.begin());
    const float scale = 1.0f / std::sqrt(float(d));
    const float* from = batch.qkv.const_data_ptr<float>() + batch.first[size_t(g)] * batch.stride() +
                        h * d;
    for (int64_t i = 0; i < n; ++i, from += batch.stride()) {
      float* to = key.data() + i / keys * keys * d + i % keys;
      for (int64_t k = 0; k < d; ++k) {
        query[size_t(k * padded + i)] = from[k] * scale;
        to[k * keys] = from[part + k];
      }
      std::copy(from + 2 * part, from + 2 * part + d, value.begin() + i * d);
    }
    head = {n,
            d,
            padded,
            query.data(),
            key.data(),
            value.data(),
            codes.memory.data() + codes.first[size_t(g)],
            batch.wide(),
            batch.rows,
            bias.data()};
  }
};

// One head of one graph as the backward pass reads it, with memory of its own.
struct Head {
  AttentionHead head;
  std::vector<float> query, key, value;

  Head(const Batch& batch, int64_t g, int64_t h, int lanes) {
    const int64_t n = batch.size(g), d = batch.width;
    const int64_t padded = round_up(n, lanes);
    key.assign(size_t(d * padded), 0.0f);
    value.assign(size_t(d * padded), 0.0f);
    query.resize(size_t(n * d));
    const float scale = 1.0f / std::sqrt(float(d));
    const float* from = batch.qkv.const_data_ptr<float>() + batch.first[size_t(g)] * batch.stride() +
                        h * d;
    const int64_t part = batch.heads * d;
    for (int64_t i = 0; i < n; ++i, from += batch.stride()) {
      for (int64_t k = 0; k < d; ++k) {
        query[size_t(i * d + k)] = from[k] * scale;
        key[size_t(k * padded + i)] = from[part + k];
        value[size_t(k * padded + i)] = from[2 * part + k];
      }
    }
    const char* codes = static_cast<const char*>(batch.codes.const_data_ptr());
    const int64_t pair = batch.pairs[size_t(g)];
    head = {n,
            d,
            padded,
            query.data(),
            d,
            key.data(),
            value.data(),
            codes + pair * (batch.wide() ? 2 : 1),
            batch.wide(),
            batch.table.const_data_ptr<float>() + h * batch.rows};
  }
};

template <class Work>
void each_head(const Batch& batch, Work work) {
  const int64_t tasks = batch.graphs() * batch.heads;
  const int64_t each = tasks == 0 ? 1 : batch.pairs.back() * batch.heads / tasks + 1;
  parallel_for(0, tasks, std::max<int64_t>(1, kGrain / each), [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t g = task / batch.heads;
      if (batch.size(g) > 0) work(g, task % batch.heads);
    }
  });
}

}  // namespace

std::tuple<Tensor, Tensor> graph_attention_cpu(const Tensor& qkv, const Tensor& codes,
                                               IntArrayRef offsets, const Tensor& table) {
  const Batch batch(qkv, codes, offsets, table);
  const AttentionKernels kernels = attention_kernels();
  const int64_t nodes = batch.first.back(), d = batch.width;
  Tensor out = empty({nodes, batch.heads * d}, batch.qkv.options());
  Tensor logsum = empty({nodes, batch.heads}, batch.qkv.options());
  float *to = out.data_ptr<float>(), *sums = logsum.data_ptr<float>();
  const QueryCodes by_query(batch, kernels.lanes);
  each_head(batch, [&](int64_t g, int64_t h) {
    const Queries made(batch, by_query, g, h, kernels.lanes);
    std::vector<float> logits(made.key.size() / size_t(d) * size_t(kernels.lanes));
    const int64_t first = batch.first[size_t(g)];
    kernels.forward(made.head, to + first * batch.heads * d + h * d, batch.heads * d,
                    sums + first * batch.heads + h, batch.heads, logits.data());
  });
  return {out, logsum};
}

std::tuple<Tensor, Tensor> graph_attention_backward_cpu(const Tensor& grad, const Tensor& qkv,
                                                        const Tensor& codes, IntArrayRef offsets,
                                                        const Tensor& table, const Tensor& out,
                                                        const Tensor& logsum) {
  const Batch batch(qkv, codes, offsets, table);
  const AttentionKernels kernels = attention_kernels();
  const int64_t nodes = batch.first.back(), d = batch.width, heads = batch.heads;
  for (const auto& [tensor, name] : {std::pair(&grad, "grad"), std::pair(&out, "out")}) {
    check_device(*tensor, kCPU, name);
    check_dtype(*tensor, kFloat, name);
    check_shape(*tensor, {nodes, heads * d}, name);
  }
  check_device(logsum, kCPU, "logsum");
  check_dtype(logsum, kFloat, "logsum");
  check_shape(logsum, {nodes, heads}, "logsum");
  const Tensor given = grad.contiguous(), result = out.contiguous(), sums = logsum.contiguous();
  Tensor grad_qkv = empty(batch.qkv.sizes(), batch.qkv.options());
  Tensor parts = zeros({batch.graphs(), heads, batch.rows}, batch.qkv.options());
  float *to = grad_qkv.data_ptr<float>(), *part = parts.data_ptr<float>();
  each_head(batch, [&](int64_t g, int64_t h) {
    const Head made(batch, g, h, kernels.lanes);
    const int64_t n = made.head.nodes, padded = made.head.padded, first = batch.first[size_t(g)];
    std::vector<float> rows(size_t(2 * padded)), query(size_t(n * d), 0.0f);
    std::vector<float> key(size_t(d * padded), 0.0f), value(size_t(d * padded), 0.0f);
    const int64_t at = first * heads * d + h * d;
    kernels.backward(made.head, given.const_data_ptr<float>() + at,
                     result.const_data_ptr<float>() + at, heads * d,
                     sums.const_data_ptr<float>() + first * heads + h, heads, query.data(),
                     key.data(), value.data(), part + (g * heads + h) * batch.rows, rows.data());
    const float scale = 1.0f / std::sqrt(float(d));
    float* row = to + first * batch.stride() + h * d;
    for (int64_t i = 0; i < n; ++i, row += batch.stride()) {
      for (int64_t k = 0; k < d; ++k) {
        row[k] = query[size_t(i * d + k)] * scale;
        row[heads * d + k] = key[size_t(k * padded + i)];
        row[2 * heads * d + k] = value[size_t(k * padded + i)];
      }
    }
  });
  Tensor grad_table = zeros({batch.rows, heads}, batch.qkv.options());
  float* sum = grad_table.data_ptr<float>();
  for (int64_t g = 0; g < batch.graphs(); ++g) {
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t r = 0; r < batch.rows; ++r) sum[r * heads + h] += *part++;
    }
  }
  return {grad_qkv, grad_table};
}

STABLE_TORCH_LIBRARY_IMPL(ghn_fast, CPU, m) {
  m.impl("graph_attention_forward", boxed<&graph_attention_cpu>);
  m.impl("graph_attention_backward", boxed<&graph_attention_backward_cpu>);
}

}  // namespace ghn
