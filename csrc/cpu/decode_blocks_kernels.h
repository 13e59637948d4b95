// The product that the decoder consists of, for the instruction set of this machine.
#pragma once

#include <cstdint>

namespace ghn {

// Inputs lie in panels of `columns` inputs side by side, element k of all of them next to each
// other: the weights are then read as they are stored, once per pair of panels, and an output is a
// vector.
struct DecodeKernel {
  // Most columns and rows of any instruction set.
  static constexpr int kMostColumns = 16, kMostRows = 8;

  int columns;
  int rows;  // most rows of weights that one call takes

  // to[r, p, v] = bias[r] + sum_k weight[r][k] panel_p[k, v] of two panels, k ascending, whatever
  // else is computed with it; max(0, .) of it with `relu`. `count` rows. Without a second panel its
  // place in `to` stays as it is.
  void (*product)(const float* const* weight, const float* bias, int count, int64_t inputs,
                  const float* first, const float* second, bool relu, float* to);
};

DecodeKernel decode_kernel();

}  // namespace ghn
