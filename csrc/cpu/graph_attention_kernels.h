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

struct AttentionKernels {
  int lanes;

  // out: row i at out + i * stride_out; logsum: of row i at logsum + i * heads. rows: 4 * padded.
  void (*forward)(const AttentionHead& head, float* out, int64_t stride_out, float* logsum,
                  int64_t heads, float* rows);

  // Gradients: of queries (row i at + i * stride) before their factor, of keys and values (d, padded)
  // and of the bias of each code, all added to. grad, out: row i at + i * stride_out.
  // rows: 2 * padded.
  void (*backward)(const AttentionHead& head, const float* grad, const float* out,
                   int64_t stride_out, const float* logsum, int64_t heads, float* grad_query,
                   float* grad_key, float* grad_value, float* grad_bias, float* rows);
};

AttentionKernels attention_kernels();

}  // namespace ghn
