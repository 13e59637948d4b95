// Sums of images: the gradient of a value that several instructions read, and of activations.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace ghn {

// A sum that has not been computed yet: of gradients as they come in, and of those that come
// through a ReLU, which count where the ReLU is above 0. Terms may be parts of larger tensors.
class GradientSum {
 public:
  void add(const at::Tensor& gradient) { plain_.push_back(gradient); }
  // The gradients of a ReLU of the value, whose result is `relu`.
  void add_through_relu(GradientSum gradients, const at::Tensor& relu);
  bool empty() const { return plain_.empty() && masked_.empty(); }
  // The sum, in channels_last where it is one of images; undefined without terms. In bfloat16 it is
  // rounded once.
  at::Tensor take();

 private:
  std::vector<at::Tensor> plain_, masked_;
  at::Tensor mask_;
};

// max(0, a + b), and max(0, .) of images side by side, in one pass; undefined where the images are
// not stored alike in channels_last.
at::Tensor add_relu(const at::Tensor& a, const at::Tensor& b);
at::Tensor cat_relu(const std::vector<at::Tensor>& parts);

}  // namespace ghn
