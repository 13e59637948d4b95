// Where a convolution, or the gradient of its input, reads along one axis.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace ghn {

// Output o is a sum over taps k. A convolution reads position o * stride + k * dilation - padding
// for it. The gradient of its input, `transposed`, reads (o + padding - k * dilation) / stride where
// that is a whole number.
struct Axis {
  int64_t in, out;  // positions that are read from, and written to
  int64_t taps, stride, padding, dilation;
  bool transposed;

  // Outputs of a class have the same taps, and read positions that are `step` apart.
  int64_t classes() const { return transposed ? stride : 1; }
  int64_t step() const { return transposed ? 1 : stride; }
  int64_t outputs(int64_t kind) const { return std::max<int64_t>(0, (out - kind + classes() - 1) / classes()); }

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

}  // namespace ghn
