// A program with its backward pass.
#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <functional>
#include <optional>
#include <vector>

#include "gradient_sum.h"
#include "network_program.h"

namespace ghn {

// What most of the instructions of a network consist of is differentiated here, without a graph: it
// takes less time than autograd, and gradients are summed in one pass (GradientSum). For the others
// there is a graph of autograd for each.
class ProgramTape {
 public:
  // Parameters without history.
  ProgramTape(const std::vector<Instruction>& program, const std::vector<at::Tensor>& parameters,
              std::optional<at::Generator> generator);

  // The result for images (B, 3, S, S); keeps what backward() needs.
  at::Tensor forward(const at::Tensor& images);

  // From the gradient of the result; calls store(parameter, gradient) for each instruction that
  // reads a parameter. Lets go what was kept.
  void backward(const at::Tensor& gradient,
                const std::function<void(int64_t, const at::Tensor&)>& store);

 private:
  typedef std::vector<at::Tensor> Tensors;
  struct Record {
    bool by_autograd = false;
    bool rectified = false;  // the ReLU that alone reads the value has been applied to it
    bool nothing = false;    // a ReLU of such a value
    Tensors kept;
    std::optional<Convolution> convolution;
    std::vector<int64_t> channels;  // of each part of a concatenation
  };

  at::Tensor run(size_t step, const Tensors& sources, const Tensors& weights);
  at::Tensor run_by_autograd(size_t step, const Tensors& sources, const Tensors& weights);
  bool rectified(size_t step, const at::Tensor& value);
  at::Tensor through_relu(size_t step, GradientSum sum);
  void differentiate(size_t step, GradientSum sum,
                     const std::function<void(int64_t, const at::Tensor&)>& store);
  void differentiate_by_autograd(size_t step, const at::Tensor& gradient,
                                 const std::function<void(int64_t, const at::Tensor&)>& store);
  bool needs(int64_t value) const { return needs_[size_t(value)]; }
  GradientSum& gradient_of(int64_t value) { return gradients_[size_t(value)]; }

  const std::vector<Instruction>& program_;
  const Tensors& parameters_;
  const std::optional<at::Generator> generator_;
  std::vector<Record> records_;
  std::vector<bool> for_relu_;  // per instruction: whether a ReLU alone reads its value
  std::vector<bool> needs_;     // per value: whether it depends on a parameter
  std::vector<GradientSum> gradients_;
};

}  // namespace ghn
