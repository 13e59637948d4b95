// The shapes of a depthwise convolution, and where it or the gradient of its input reads.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>

#include "checks.h"

namespace ghn {

// Output o is a sum over taps k. A convolution reads position o * stride + k * dilation - padding
// for it. The gradient of its input, `transposed`, reads (o + padding - k * dilation) / stride
// where that is a whole number.
struct Axis {
  int64_t in, out;  // positions that are read from, and written to
  int64_t taps, stride, padding, dilation;
  bool transposed;

  // Outputs of a class have the same taps, and read positions that are `step` apart.
  int64_t classes() const { return transposed ? stride : 1; }
  int64_t step() const { return transposed ? 1 : stride; }
  int64_t outputs(int64_t number) const {
    return std::max<int64_t>(0, (out - number + classes() - 1) / classes());
  }

  // Whether output o has tap k; the position may be outside of 0 .. in.
  bool position(int64_t o, int64_t k, int64_t* at) const {
    if (!transposed) {
      *at = o * stride + k * dilation - padding;
      return true;
    }
    const int64_t scaled = o + padding - k * dilation;
    *at = scaled / stride;
    return scaled % stride == 0;
  }
};

// A range of positions, empty if first > last.
struct Range {
  int64_t first = INT64_MAX, last = INT64_MIN;

  void add(int64_t at) { first = std::min(first, at), last = std::max(last, at); }
  int64_t size() const { return std::max<int64_t>(0, last - first + 1); }
};

// All positions that outputs [begin, end) read, or those of them that are there.
inline Range range_of(const Axis& axis, int64_t begin, int64_t end, bool there) {
  Range range;
  int64_t at;
  for (int64_t o = begin; o < end; ++o) {
    for (int64_t k = 0; k < axis.taps; ++k) {
      if (axis.position(o, k, &at) && (!there || (at >= 0 && at < axis.in))) range.add(at);
    }
  }
  return range;
}

// A block's images, or as many rows of them as fit, are spread out in so many floats.
constexpr int64_t kScratch = 12 * 1024;
// Products that are worth a thread.
constexpr int64_t kGrain = int64_t(1) << 17;

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// What all three ops agree on: the sizes of images before and after.
struct Shapes {
  int64_t images, channels;
  Axis rows, columns;  // of the forward pass

  int64_t taps() const { return rows.taps * columns.taps; }
};

inline int64_t output_size(int64_t in, int64_t taps, int64_t stride, int64_t padding,
                           int64_t dilation) {
  return (in + 2 * padding - dilation * (taps - 1) - 1) / stride + 1;
}

inline Axis axis_of(int64_t in, int64_t taps, int64_t stride, int64_t padding, int64_t dilation,
                    const char* name) {
  // Beyond these, positions would not fit in 64 bits, nor images in memory.
  static constexpr int64_t kMost = int64_t(1) << 30;
  const auto check = [](const char* what, int64_t got, int64_t least) {
    TORCH_CHECK_VALUE(got >= least && got <= kMost, what, ": got ", got, ", needs ", least, " to ",
                      kMost);
  };
  check("size of the images", in, 0);
  check("size of the kernels", taps, 1);
  check("stride", stride, 1);
  check("padding", padding, 0);
  check("dilation", dilation, 1);
  TORCH_CHECK_VALUE(in + 2 * padding > dilation * (taps - 1), "x: got ", in, " ", name,
                    ", with padding ", in + 2 * padding, ", needs at least ",
                    dilation * (taps - 1) + 1, ", as many as a kernel spans");
  return {in, output_size(in, taps, stride, padding, dilation), taps, stride, padding, dilation,
          false};
}

inline Shapes shapes_of(at::IntArrayRef x, at::IntArrayRef kernel, at::IntArrayRef stride,
                        at::IntArrayRef padding, at::IntArrayRef dilation) {
  TORCH_CHECK_VALUE(x.size() == 4, "x: got shape ", x, ", needs (N, C, H, W)");
  for (const at::IntArrayRef pair : {kernel, stride, padding, dilation}) {
    TORCH_CHECK_VALUE(pair.size() == 2, "kernel size, stride, padding and dilation: got ", pair,
                      ", needs two numbers");
  }
  return {x[0], x[1], axis_of(x[2], kernel[0], stride[0], padding[0], dilation[0], "rows"),
          axis_of(x[3], kernel[1], stride[1], padding[1], dilation[1], "columns")};
}

}  // namespace ghn
