// How the elements of parameters follow from those of decoded blocks; compiled for host and device.
//
// Element (o, i, h, w) of a parameter is f(block[o mod B_o, i mod B_i, h mod B_h, w mod B_w]).
// Where block and parameter agree in h and w, which is nearly always, an output channel of the
// parameter repeats the first `period` elements of a row of the block, and the rows repeat as well:
//
//   element e, o = e div row_length, t = e mod row_length:  row o mod rows, column t mod period
#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"

namespace ghn {

// As in Kind of ghn_fast/ops/expand_params.py.
enum ParamKind : int32_t { kCopy = 0, kWeight = 1, kScale = 2, kShift = 3 };

// f of a kind; `scale` is the factor of a weight.
template <class T>
GHN_INLINE T normalise(int32_t kind, T x, T scale) {
  if (kind == kWeight) return x * scale;
  if (kind == kScale) return T(2) / (T(1) + std::exp(T(-0.5) * x));
  if (kind == kShift) return std::tanh(T(0.2) * x);
  return x;
}

// Derivative of f at x.
template <class T>
GHN_INLINE T normalise_slope(int32_t kind, T x, T scale) {
  if (kind == kWeight) return scale;
  if (kind == kScale) {
    const T s = T(1) / (T(1) + std::exp(T(-0.5) * x));
    return s * (T(1) - s);
  }
  if (kind == kShift) {
    const T t = std::tanh(T(0.2) * x);
    return T(0.2) * (T(1) - t * t);
  }
  return T(1);
}

// How elements of type T are computed, and how they get there and back; the types of CUDA have
// specialisations of their own.
template <class T>
struct ExpandMath {
  typedef T type;
  static GHN_INLINE T widen(T x) { return x; }
  static GHN_INLINE T narrow(T x) { return x; }
};

// Copies of an element whose loads a thread of the backward pass has in flight at a time.
constexpr int kInFlight = 4;

struct ExpandRow {
  int64_t source;      // of the block in its tensor
  int64_t offset;      // of the parameter in the flat buffer
  int64_t size;        // elements of the parameter
  int64_t padded;      // and with the gap up to the next one
  int64_t block_size;  // elements of the block
  double scale;
  int64_t row_length, period, stride, rows;  // see above; `stride` from row to row of the block
  int64_t channels;                          // output channels, or 1 where they all are one row
  int32_t shape[4], block_shape[4];
  int32_t block, kind;
  bool linear;  // whether block and parameter agree in h and w

  // Fill in what follows from source, shapes and offset.
  void derive() {
    const int32_t *b = block_shape, *p = shape;
    const int64_t area = int64_t(p[2]) * p[3];
    size = p[0] * p[1] * area;
    stride = int64_t(b[1]) * b[2] * b[3];
    block_size = b[0] * stride;
    linear = b[2] == p[2] && b[3] == p[3];
    channels = p[0];
    rows = b[0] < p[0] ? b[0] : p[0];
    row_length = p[1] * area;
    period = (b[1] < p[1] ? b[1] : p[1]) * area;
    if (linear && row_length == period && period == stride) {
      // Nothing is cut off and nothing repeats within a channel: rows that touch are one row.
      row_length = size;
      period *= rows;
      stride = block_size;
      channels = rows = 1;
    }
  }

  // Where the block has element e of the parameter, counted from `source`. Int is wide enough for
  // the number of elements of both.
  template <class Int>
  GHN_INLINE Int from(Int e) const {
    if (linear) {
      const Int o = e / Int(row_length), t = e - o * Int(row_length);
      return o % Int(rows) * Int(stride) + t % Int(period);
    }
    const Int w = e % Int(shape[3]), h = e / Int(shape[3]) % Int(shape[2]);
    const Int channel = e / Int(shape[3]) / Int(shape[2]);
    const Int i = channel % Int(shape[1]), o = channel / Int(shape[1]);
    return ((o % Int(block_shape[0]) * Int(block_shape[1]) + i % Int(block_shape[1])) *
                Int(block_shape[2]) + h % Int(block_shape[2])) * Int(block_shape[3]) +
           w % Int(block_shape[3]);
  }

  // Sum of `values` over the elements of the parameter that element s of the block (counted from
  // `source`) went to; part `part` of `parts`, which together are all of them. Int as above.
  template <class Int, class T>
  GHN_INLINE typename ExpandMath<T>::type gather(const T* values, Int s, Int part,
                                                 Int parts) const {
    typename ExpandMath<T>::type sum = 0;
    const Int row = s / Int(stride), t = s % Int(stride);
    if (linear) {
      if (row >= Int(rows) || t >= Int(period)) return sum;
      // Copies lie in channels row, row + rows, ..., and in each at t, t + period, ...: copy q is in
      // the (q div repeats)-th of them at the (q mod repeats)-th place.
      const Int repeats = Int((row_length + period - 1) / period);
      const Int channel_step = parts / repeats, place_step = parts % repeats;
      Int channel = part / repeats, place = part % repeats;
      const Int count = Int((channels - row + rows - 1) / rows);
      // Where they lie first, and the loads together: a load that waits for the one before it
      // leaves a GPU's memory idle. They are added one by one, in the order of the copies.
      while (channel < count) {
        Int at[kInFlight];
        bool there[kInFlight];
        for (int k = 0; k < kInFlight; ++k) {
          const Int column = t + place * Int(period);
          there[k] = channel < count && column < Int(row_length);
          at[k] = (row + channel * Int(rows)) * Int(row_length) + column;
          channel += channel_step, place += place_step;
          if (place >= repeats) place -= repeats, ++channel;
        }
        typename ExpandMath<T>::type value[kInFlight] = {};
        for (int k = 0; k < kInFlight; ++k) {
          if (there[k]) value[k] = ExpandMath<T>::widen(values[at[k]]);
        }
        for (int k = 0; k < kInFlight; ++k) sum += value[k];
      }
      return sum;
    }
    const int64_t area = int64_t(block_shape[2]) * block_shape[3];
    const int64_t i0 = t / area, h0 = t % area / block_shape[3], w0 = t % block_shape[3];
    const int64_t first = int64_t(row) + int64_t(part) * block_shape[0];
    for (int64_t o = first; o < shape[0]; o += int64_t(parts) * block_shape[0]) {
      for (int64_t i = i0; i < shape[1]; i += block_shape[1]) {
        for (int64_t h = h0; h < shape[2]; h += block_shape[2]) {
          for (int64_t w = w0; w < shape[3]; w += block_shape[3]) {
            sum += ExpandMath<T>::widen(values[((o * shape[1] + i) * shape[2] + h) * shape[3] + w]);
          }
        }
      }
    }
    return sum;
  }
};

}  // namespace ghn
