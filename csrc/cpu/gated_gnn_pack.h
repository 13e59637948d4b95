// Weights of the gated GNN, packed for the CPU kernels, and the sums of their gradients.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "../common/gated_gnn_args.h"
#include "gated_gnn_walk.h"

namespace ghn {

// Memory without initialisation, aligned for the widest vectors.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t size)
      : data_(static_cast<T*>(std::aligned_alloc(64, (size * sizeof(T) + 64) / 64 * 64)),
              &std::free) {
    if (!data_) throw std::bad_alloc();
  }
  T* get() const { return data_.get(); }

 private:
  std::unique_ptr<T, void (*)(void*)> data_;
};

template <class T>
class PackedWeights {
 public:
  PackedWeights(const GatedGnnArgs& args, bool backward) : args_(args), r_(args.record) {
    const int64_t c = args.channels, cp = r_.c;
    // Zeros between the values are what makes padding harmless.
    memory_.assign(6 * cp * cp + 6 * cp + 2 * r_.hidden * cp + r_.hidden + 2 * cp, T(0));
    next_ = memory_.data();
    backward ? pack_backward(c, cp) : pack_forward(c, cp);
  }
  const Packed<T>& get() const { return packed_; }

 private:
  T* take(int64_t size) {
    T* at = next_;
    next_ += size;
    return at;
  }

  // to[column, row] = from[row, column], for a block of a weight (rows, columns).
  static void transpose(T* to, int64_t to_width, const T* from, int64_t rows, int64_t columns) {
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < columns; ++j) to[j * to_width + i] = from[i * columns + j];
    }
  }

  static void copy(T* to, int64_t to_width, const T* from, int64_t rows, int64_t columns) {
    for (int64_t i = 0; i < rows; ++i) {
      std::copy(from + i * columns, from + (i + 1) * columns, to + i * to_width);
    }
  }

  void pack_forward(int64_t c, int64_t cp) {
    T* const gates[2] = {take(3 * cp * cp), take(3 * cp * cp)};
    T* const biases[2] = {take(3 * cp), take(3 * cp)};
    for (int i = 0; i < 2; ++i) {
      const T* weight = args_.gru(i).template const_data_ptr<T>();
      const T* bias = args_.gru(2 + i).template const_data_ptr<T>();
      for (int64_t gate = 0; gate < 3; ++gate) {
        transpose(gates[i] + gate * cp, 3 * cp, weight + gate * c * c, c, c);
        copy(biases[i] + gate * cp, cp, bias + gate * c, 1, c);
      }
    }
    packed_.ih = gates[0], packed_.hh = gates[1];
    packed_.ih_b = biases[0], packed_.hh_b = biases[1];
    T* const first = take(cp * r_.hidden);
    T* const first_b = take(r_.hidden);
    for (int64_t k = 0; k < args_.messages; ++k) {
      const int64_t h = args_.hidden[k], start = k == 0 ? 0 : r_.h[0];
      transpose(first + start, r_.hidden, args_.mlp(k, 0).template const_data_ptr<T>(), h, c);
      copy(first_b + start, h, args_.mlp(k, 1).template const_data_ptr<T>(), 1, h);
      T* const second = take(r_.h[k] * cp);
      T* const second_b = take(cp);
      transpose(second, cp, args_.mlp(k, 2).template const_data_ptr<T>(), c, h);
      copy(second_b, c, args_.mlp(k, 3).template const_data_ptr<T>(), 1, c);
      packed_.second[k] = second, packed_.second_b[k] = second_b;
    }
    packed_.first = first, packed_.first_b = first_b;
  }

  void pack_backward(int64_t c, int64_t cp) {
    T* const ih = take(3 * cp * cp);
    T* const hh = take(3 * cp * cp);
    const T* from_ih = args_.gru(0).template const_data_ptr<T>();
    const T* from_hh = args_.gru(1).template const_data_ptr<T>();
    for (int64_t gate = 0; gate < 3; ++gate) {
      const int64_t place = (gate + 1) % 3;  // r z n -> n r z
      copy(ih + place * cp * cp, cp, from_ih + gate * c * c, c, c);
      copy(hh + gate * cp * cp, cp, from_hh + gate * c * c, c, c);
    }
    packed_.ih_t = ih, packed_.hh_t = hh;
    T* const first = take(r_.hidden * cp);
    for (int64_t k = 0; k < args_.messages; ++k) {
      const int64_t h = args_.hidden[k], start = k == 0 ? 0 : r_.h[0];
      copy(first + start * cp, cp, args_.mlp(k, 0).template const_data_ptr<T>(), h, c);
      T* const second = take(cp * r_.h[k]);
      copy(second, r_.h[k], args_.mlp(k, 2).template const_data_ptr<T>(), c, h);
      packed_.second_t[k] = second;
    }
    packed_.first_t = first;
  }

  const GatedGnnArgs& args_;
  const Record& r_;
  std::vector<T> memory_;
  T* next_ = nullptr;
  Packed<T> packed_{};
};

// Number of elements of WeightSums.
inline int64_t weight_sums_size(const Record& r) {
  return 6 * r.c * r.c + 6 * r.c + 2 * r.hidden * r.c + r.hidden + r.messages * r.c;
}

template <class T>
WeightSums<T> weight_sums(T* at, const Record& r) {
  WeightSums<T> sums{};
  auto take = [&at](int64_t size) {
    T* here = at;
    at += size;
    return here;
  };
  sums.ih = take(3 * r.c * r.c), sums.hh = take(3 * r.c * r.c);
  sums.ih_b = take(3 * r.c), sums.hh_b = take(3 * r.c);
  sums.first = take(r.hidden * r.c), sums.first_b = take(r.hidden);
  for (int64_t k = 0; k < r.messages; ++k) {
    sums.second[k] = take(r.c * r.h[k]), sums.second_b[k] = take(r.c);
  }
  return sums;
}

// The sums without padding, in the shapes of the weights.
template <class T>
std::vector<at::Tensor> unpack_weight_sums(const WeightSums<T>& sums, const GatedGnnArgs& args) {
  const Record& r = args.record;
  const int64_t c = args.channels;
  std::vector<at::Tensor> result;
  for (const at::Tensor& weight : args.weights) result.push_back(at::empty_like(weight));
  auto copy = [](T* to, const T* from, int64_t width, int64_t rows, int64_t columns) {
    for (int64_t i = 0; i < rows; ++i) {
      std::copy(from + i * width, from + i * width + columns, to + i * columns);
    }
  };
  auto data = [&result](int64_t i) { return result[i].template data_ptr<T>(); };
  for (int64_t k = 0; k < args.messages; ++k) {
    const int64_t h = args.hidden[k], start = k == 0 ? 0 : r.h[0];
    copy(data(4 * k), sums.first + start * r.c, r.c, h, c);
    copy(data(4 * k + 1), sums.first_b + start, h, 1, h);
    copy(data(4 * k + 2), sums.second[k], r.h[k], c, h);
    copy(data(4 * k + 3), sums.second_b[k], c, 1, c);
  }
  const int64_t gru = 4 * args.messages;
  for (int64_t gate = 0; gate < 3; ++gate) {
    const int64_t place = (gate + 1) % 3;  // r z n -> n r z
    copy(data(gru) + gate * c * c, sums.ih + place * r.c * r.c, r.c, c, c);
    copy(data(gru + 1) + gate * c * c, sums.hh + gate * r.c * r.c, r.c, c, c);
    copy(data(gru + 2) + gate * c, sums.ih_b + place * r.c, c, 1, c);
    copy(data(gru + 3) + gate * c, sums.hh_b + gate * r.c, c, 1, c);
  }
  return result;
}

}  // namespace ghn
