// The inner loop of a sum of gradients, for the instruction set of this machine.
#pragma once

#include <cstdint>

namespace ghn {

constexpr int kMostTerms = 8;

// Rows of numbers; row r of term i begins at data[i] + r stride[i].
template <class T>
struct TermList {
  int count = 0;
  const T* data[kMostTerms];
  int64_t stride[kMostTerms];
};

// What is summed: plain terms, and masked ones, whose sum counts as 0 where the mask is not above
// 0. T is float or c10::BFloat16; sums are float32.
template <class T>
struct GradientTerms {
  TermList<T> plain, masked;
  const T* mask = nullptr;
  int64_t mask_stride = 0;
};

// The rows from begin to end, of `width` numbers, into rows at a distance; max(0, .) with `relu`.
template <class T>
using GradientSumKernel = void (*)(const GradientTerms<T>& terms, int64_t begin, int64_t end,
                                   int64_t width, bool relu, T* out, int64_t out_stride);

template <class T>
GradientSumKernel<T> gradient_sum_kernel();

}  // namespace ghn
