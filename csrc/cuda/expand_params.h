// The launches of the expansion of parameters on CUDA, in plain pointers.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../common/expand_params_plan.h"

namespace ghn::cuda {

enum class Type { kFloat, kDouble, kHalf, kBFloat16 };

// Pointers to the block tensors travel with the launch, which may have 4 KiB of arguments
// everywhere. A meta-batch of 64 networks of DeepNets-1M has 21 block tensors.
constexpr int kMostBlocks = 160;

struct Blocks {
  const void* at[kMostBlocks];
};

struct BlocksAndGradients {
  const void* at[kMostBlocks];
  void* grad[kMostBlocks];
  int64_t size[kMostBlocks];
};

struct ExpandArgs {
  const uint8_t* packed;
  int64_t rows, segments;
  uint64_t fingerprint;
  Type type;
  bool aligned;       // whether every block tensor and the result begin at a multiple of 16 bytes
  int32_t num_blocks;
};

// Where the plan was made from another table, or for other sizes, all that is written is NaN.
cudaError_t launch_expand(const ExpandArgs& args, const Blocks& blocks, void* out, int64_t numel,
                          int device, cudaStream_t stream);

cudaError_t launch_expand_backward(const ExpandArgs& args, const BlocksAndGradients& blocks,
                                   const void* grad, int device, cudaStream_t stream);

}  // namespace ghn::cuda
