// What a batch normalisation consists of, for the instruction set of this machine.
//
// All kernels take rows of `width` numbers side by side, a multiple of nothing but at least
// `lanes`; column c of each row belongs to one channel. The last vector of a row overlaps the one
// before it where the width is no multiple of the lanes: it makes the same numbers again.
#pragma once

#include <cstdint>

namespace ghn {

// Per column, in float32.
struct BatchNormColumns {
  const float* mean;
  const float* scale;  // weight / sqrt(variance + eps)
  const float* shift;  // bias
};

// T is float or c10::BFloat16.
template <class T>
struct BatchNormKernels {
  int lanes;

  // Of each column of `rows` rows: the mean, and the sum of squared distances from it.
  void (*statistics)(const T* x, int64_t rows, int64_t width, double* mean, double* squares);

  // out = (x - mean) scale + shift, max(0, .) of it with `relu`.
  void (*normalise)(const T* x, int64_t rows, int64_t width, const BatchNormColumns& columns,
                    bool relu, T* out);

  // Of each column: the sums of grad and of grad (x - mean). With `relu`, grad counts as 0 where
  // `normalise` gave 0.
  void (*sums)(const T* grad, const T* x, int64_t rows, int64_t width,
               const BatchNormColumns& columns, bool relu, float* sum, float* product);

  // out = grad scale - offset - (x - mean) slope, offset and slope per column.
  void (*gradient)(const T* grad, const T* x, int64_t rows, int64_t width,
                   const BatchNormColumns& columns, const float* offset, const float* slope,
                   bool relu, T* out);
};

template <class T>
BatchNormKernels<T> batch_norm_kernels();

}  // namespace ghn
