// Memory of the gated GNN on CPU: scratch arrays, packed weights and the sums of their gradients.
#pragma once

#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "../common/gated_gnn_args.h"

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
class WeightMemory {
 public:
  WeightMemory(const GatedGnnArgs& args, bool backward)
      // Zeros between the values are what makes padding harmless.
      : memory_(PackedWeights<T>::size(args.record), T(0)),
        packed_(PackedWeights<T>::at(memory_.data(), args.record)) {
    each_weight_block<const T>(args, args.pointers().data(), packed_, backward, PackBlock{});
  }
  const PackedWeights<T>& get() const { return packed_; }

 private:
  std::vector<T> memory_;
  PackedWeights<T> packed_;
};

// Gradients of the weights from their sums, which lie like the weights of the backward.
template <class T>
std::vector<Tensor> unpack_weight_sums(const PackedWeights<T>& sums, const GatedGnnArgs& args) {
  GatedGnnArgs result = args;
  for (Tensor& weight : result.weights) weight = empty_like(weight);
  each_weight_block<T>(args, result.pointers().data(), sums, true, [](const auto& block) {
    for (int64_t r = 0; r < block.rows; ++r) {
      for (int64_t c = 0; c < block.columns; ++c) {
        block.given[r * block.columns + c] =
            block.packed[r * block.row_step + c * block.column_step];
      }
    }
  });
  return result.weights;
}

}  // namespace ghn
