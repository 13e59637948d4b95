// The launches of attention within graphs on CUDA, in plain pointers, and their sizes.
#pragma once

#include <cstdint>

#include "../common/host_device.h"

namespace ghn::cuda {

// Threads of a block, one for each query or key of a tile; and what they go through at a time.
constexpr int kAttentionThreads = 64, kAttentionStep = 64;
// Widest head; elements are kept in registers.
constexpr int kWidestHead = 32;
// Calls run with the width of heads, up to that, rounded up, as a constant.
template <class Run>
auto with_width(int64_t width, const Run& run) {
  if (width <= 8) return run.template operator()<8>();
  if (width <= 16) return run.template operator()<16>();
  if (width <= 24) return run.template operator()<24>();
  return run.template operator()<kWidestHead>();
}
// Graphs of one launch: where they begin travels with it, so that nothing is copied.
constexpr int kMostGraphs = 240;

struct Graphs {
  int64_t pair;  // code of the first one
  int64_t tile;  // number of its first tile
  int32_t count;
  int64_t first[kMostGraphs + 1];  // node of each, and at the end

  static GHN_INLINE int64_t tiles_of(int64_t nodes) {
    return (nodes + kAttentionThreads - 1) / kAttentionThreads;
  }
};
// Kernels have 4 KiB of arguments everywhere.
static_assert(sizeof(Graphs) < 3072);

struct AttentionArgs {
  int64_t heads, width, rows;  // rows of the table
  float scale;                 // 1 / sqrt(width)
  bool wide;                   // codes are int16
  const float* qkv;            // (N, 3, H, d)
  const void* codes;
  const float* table;  // (R, H)
  float* out;          // (N, H d)
  float* logsum;       // (N, H), written forward and read backward
  // Backward: gradient of the outputs, its sum of products with them, and what is written.
  const float* grad;
  const float* mean;  // (N, H)
  float* grad_qkv;    // (N, 3, H, d)
  float* parts;       // (tiles, H, R)
};

// Floats of shared memory of a block.
struct AttentionShared {
  static constexpr int64_t kRow = kAttentionStep + 2;  // codes of one query: without bank conflicts

  static GHN_INLINE int64_t codes() { return kAttentionThreads * kRow / 2; }
  static GHN_INLINE int64_t forward(int64_t rows, int64_t width) {
    return rows + codes() + 2 * kAttentionStep * width;
  }
  static GHN_INLINE int64_t queries(int64_t rows, int64_t width) {
    return forward(rows, width) + rows * kAttentionThreads;
  }
  static GHN_INLINE int64_t keys(int64_t rows, int64_t width) {
    return rows + 2 * kAttentionStep * width + 2 * kAttentionStep;
  }
};

}  // namespace ghn::cuda
