// Networks as lists of instructions; see ghn_fast/ops/network_program.py, which defines them.
#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <utility>
#include <vector>

namespace ghn {

enum class Code : int64_t {
  kConv, kNorm, kRelu, kMaxPool, kAvgPool, kAdd, kCat, kZeros, kStride, kShift, kMean, kLinear,
  kHardswish, kGate, kTokens, kImages, kLayerNorm, kAttend, kGelu, kGlobalPool, kFlatten, kDropout,
  kBias,
};

struct Instruction {
  Code code;
  std::vector<int64_t> sources, parameters, numbers;
  std::vector<int64_t> ends;  // values that no later instruction reads
};

// The instructions of a packed program, checked: they read values and parameters that there are.
std::vector<Instruction> unpack_program(at::IntArrayRef packed, int64_t parameters);

// Added to variances by both kinds of normalisation.
constexpr double kNormEps = 1e-5;

// The value of an instruction; autograd differentiates it.
at::Tensor run_instruction(const Instruction& instruction, const std::vector<at::Tensor>& sources,
                           const std::vector<at::Tensor>& weights,
                           const std::optional<at::Generator>& generator);

// A convolution of images, depthwise where its kernels have one input channel.
class Convolution {
 public:
  // numbers: those of the instruction.
  Convolution(const at::Tensor& x, const at::Tensor& weight, const std::vector<int64_t>& numbers);

  at::Tensor forward() const;  // autograd differentiates it
  // Of the input, undefined unless it is asked for, and of the weight.
  std::pair<at::Tensor, at::Tensor> gradients(const at::Tensor& gradient, bool of_input) const;

 private:
  typedef std::array<int64_t, 2> Pair;

  void leave_out_far_taps();

  at::Tensor x_, weight_, kernels_;
  Pair stride_, padding_, dilation_;
  Pair first_{0, 0};  // of the kernels' taps within those of the weight
  bool depthwise_;
};

}  // namespace ghn
