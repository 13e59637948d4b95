// Attention of one head within one graph, for the instruction set of this machine.
#pragma once

#include <cstdint>

namespace ghn {

// Nodes [0, n) of one graph and one head of width d. Keys and values are transposed: element k of
// all nodes side by side, `padded` of them, n rounded up to whole vectors; behind n they are zeros.
struct AttentionHead {
  int64_t nodes, width, padded;
  const float* query;  // node i at query + i * stride, times 1 / sqrt(d) already
  int64_t stride;
  const float* key;    // (d, padded)
  const float* value;  // (d, padded)
  const void* codes;   // (n, n), uint8 or int16
  bool wide;           // int16
  const float* bias;   // of each code
};

// The same for the forward pass, in which queries are side by side.
struct AttentionQueries {
  static constexpr int64_t kTable = 128;  // biases that are looked up in registers
  static constexpr int64_t kKeys = 8;     // side by side

  int64_t nodes, width, padded;
  const float* query;  // (d, padded), times 1 / sqrt(d) already
  const float* key;    // (n / kKeys, d, kKeys), rounded up, zeros behind the last
  const float* value;  // (n, d)
  const void* codes;   // of query i and key j: int16 at [j, i] of (n, padded), or uint8 at
                       // [j / 4, i, j % 4] of (n / 4, padded, 4); zeros behind the last
  bool wide;           // int16
  int64_t rows;        // biases that there are
  const float* bias;   // of each code, and zeros up to kTable
};

struct AttentionKernels {
  int lanes;

  // out: row i at out + i * stride_out; logsum: of row i at logsum + i * heads.
  // logits: nodes, rounded up to kKeys, * lanes.
  void (*forward)(const AttentionQueries& head, float* out, int64_t stride_out, float* logsum,
                  int64_t heads, float* logits);

  // Gradients: of queries (row i at + i * stride) before their factor, of keys and values (d, padded)
  // and of the bias of each code, all added to. grad, out: row i at + i * stride_out.
  // rows: 2 * padded.
  void (*backward)(const AttentionHead& head, const float* grad, const float* out,
                   int64_t stride_out, const float* logsum, int64_t heads, float* grad_query,
                   float* grad_key, float* grad_value, float* grad_bias, float* rows);
};

AttentionKernels attention_kernels();

}  // namespace ghn
