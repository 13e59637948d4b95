// What a depthwise convolution consists of, for the instruction set of this machine.
//
// A vector is one pixel of as many channels as fit: channels know nothing of each other. Pixels of
// a block of `lanes` channels lie side by side in float32, zeros around them, whatever they are in
// memory: [row][column][lane].
#pragma once

#include <cstdint>

namespace ghn {

// What one product of a sum reads: offsets of a pixel and of a weight, in floats.
struct Tap {
  int64_t x, weight;
};

// Rows of sums, T being the type in memory: for i < rows and j < columns
//
//     out[i * out_row + j * out_step] =
//         sum over taps of x[tap.x + i * x_row + j * x_step] * weight[tap.weight]
//
// in the order of the taps, for as many lanes as are used.
template <class T>
struct DepthwiseRows {
  const Tap* taps;
  int64_t num_taps;
  const float* x;
  const float* weight;
  T* out;
  int64_t rows, columns, x_row, x_step, out_row, out_step;
  int used;
};

// Sums over pixels, for the gradient of the weights: for t < num_taps
//
//     sums[t] += sum over i < rows, j < columns of
//         grad[i * grad_row + j * grad_step] * x[offsets[t] + i * x_row + j * x_step]
//
// All lanes are read and summed, used or not.
template <class T>
struct DepthwiseSums {
  const int64_t* offsets;
  int num_taps;
  const float* x;
  const T* grad;
  float* sums;
  int64_t rows, columns, x_row, x_step, grad_row, grad_step;
};

// T is float or c10::BFloat16.
template <class T>
struct DepthwiseKernels {
  // Most taps that one call of `gradient` takes.
  static constexpr int kMostTaps = 9;

  int lanes;

  // Pixels (count, channels), `stride` elements apart, to blocks that lie `block` floats apart.
  // Lanes without a channel get any value. Nothing is read at or beyond `end`.
  void (*fill)(const T* from, const T* end, int64_t stride, int64_t count, int64_t channels,
               float* to, int64_t block);

  void (*convolve)(const DepthwiseRows<T>& rows);

  void (*gradient)(const DepthwiseSums<T>& sums);
};

template <class T>
DepthwiseKernels<T> depthwise_kernels();

}  // namespace ghn
