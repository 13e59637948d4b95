// Depthwise convolutions on CPU, without Python: all three passes against torch's in double
// precision, at odd sizes, and wrong input, which the sanitizers watch.
#include <ATen/ATen.h>

#include <vector>

#include "../aten/image_ops.h"
#include "checks.h"

namespace {

using namespace ghn::tests;

struct Shape {
  int64_t images, channels, height, width;
  std::vector<int64_t> kernel, stride, padding, dilation;
};

const Shape kShapes[] = {
    {2, 1, 5, 5, {3, 3}, {1, 1}, {1, 1}, {1, 1}},  {3, 17, 9, 7, {5, 5}, {1, 1}, {2, 2}, {1, 1}},
    {1, 33, 8, 8, {3, 3}, {2, 2}, {1, 1}, {1, 1}}, {2, 20, 2, 2, {3, 3}, {1, 1}, {2, 2}, {2, 2}},
    {2, 64, 6, 5, {5, 5}, {2, 1}, {4, 4}, {2, 2}}, {1, 5, 16, 1, {1, 7}, {1, 1}, {0, 3}, {1, 1}},
    {2, 48, 4, 4, {1, 1}, {1, 1}, {0, 0}, {1, 1}}, {1, 16, 12, 12, {11, 11}, {1, 1}, {5, 5}, {1, 1}},
};

// At most a few units of the last place of the type, of numbers of the size of the largest.
bool near(const at::Tensor& found, const at::Tensor& expected) {
  const double unit = found.scalar_type() == at::kFloat ? 1e-5 : 8e-3;
  const double size = expected.abs().max().item<double>();
  const double error = (found.to(at::kDouble) - expected).abs().max().item<double>();
  return found.sizes() == expected.sizes() && error <= unit * size;
}

void test_against_torch(at::ScalarType type) {
  bool out = true, grad_input = true, grad_weight = true;
  for (const Shape& s : kShapes) {
    const at::Tensor x = at::randn({s.images, s.channels, s.height, s.width}).to(type);
    const at::Tensor weight = at::randn({s.channels, 1, s.kernel[0], s.kernel[1]}).to(type);
    const at::Tensor wide = x.to(at::kDouble), kernels = weight.to(at::kDouble);
    const at::Tensor want =
        at::conv2d(wide, kernels, {}, s.stride, s.padding, s.dilation, s.channels);
    out = out && near(ghn::depthwise_conv2d_cpu(x, weight, s.stride, s.padding, s.dilation), want);
    const at::Tensor grad = at::randn(want.sizes()).to(type);
    const auto [want_x, want_weight, none] = at::convolution_backward(
        grad.to(at::kDouble), wide, kernels, at::OptionalIntArrayRef(), s.stride, s.padding,
        s.dilation, false, {0, 0}, s.channels, {true, true, false});
    grad_input = grad_input && near(ghn::depthwise_conv2d_grad_input_cpu(
                                        grad, weight, s.height, s.width, s.stride, s.padding,
                                        s.dilation),
                                    want_x);
    grad_weight = grad_weight && near(ghn::depthwise_conv2d_grad_weight_cpu(
                                          grad, x, s.kernel[0], s.kernel[1], s.stride, s.padding,
                                          s.dilation),
                                      want_weight);
  }
  check(out, "outputs are those of torch");
  check(grad_input, "gradients of the input are those of torch");
  check(grad_weight, "gradients of the weight are those of torch");
}

void test_wrong_input() {
  const at::Tensor x = at::randn({2, 8, 6, 6}), weight = at::randn({8, 1, 3, 3});
  const std::vector<int64_t> one{1, 1};
  const auto takes = [&](const at::Tensor& images, const at::Tensor& kernels) {
    return !refused([&] { ghn::depthwise_conv2d_cpu(images, kernels, one, one, one); });
  };
  check(takes(x, weight) && takes(at::randn({0, 8, 6, 6}), weight), "right input is taken");
  check(!takes(x, at::randn({7, 1, 3, 3})) && !takes(x, at::randn({8, 2, 3, 3})) &&
            !takes(x, weight.to(at::kBFloat16)) && !takes(x.to(at::kDouble), weight) &&
            !takes(x[0], weight),
        "wrong input is refused");
  check(refused([&] {
          ghn::depthwise_conv2d_grad_weight_cpu(at::randn({2, 8, 5, 6}), x, 3, 3, one, one, one);
        }),
        "a gradient of another shape is refused");
}

}  // namespace

int main() {
  at::manual_seed(0);
  test_against_torch(at::kFloat);
  test_against_torch(at::kBFloat16);
  test_wrong_input();
  return exit_status();
}
