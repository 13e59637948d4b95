// Batch normalisation on CPU, without Python: both passes against formulas in double precision, at
// odd sizes, and wrong input, which the sanitizers watch.
#include <ATen/ATen.h>

#include <optional>
#include <tuple>
#include <vector>

#include "../aten/image_ops.h"
#include "checks.h"

namespace {

using namespace ghn::tests;

constexpr double kEps = 1e-5;
const std::vector<int64_t> kOver{0, 2, 3};  // all axes but that of the channels
const std::vector<std::vector<int64_t>> kSizes{{2, 1, 3, 3}, {3, 17, 5, 7}, {5, 33, 1, 1},
                                               {9, 64, 8, 8}, {64, 3, 9, 9}, {2, 130, 2, 3}};

bool near(const at::Tensor& found, const at::Tensor& expected, double unit) {
  const double size = expected.abs().max().item<double>();
  const double error = (found.to(at::kDouble) - expected).abs().max().item<double>();
  return found.sizes() == expected.sizes() && error <= unit * size;
}

at::Tensor by_channel(const at::Tensor& values) { return values.view({1, -1, 1, 1}); }

void test_against_formulas(at::ScalarType type, bool relu) {
  const double unit = type == at::kFloat ? 1e-5 : 8e-3;
  bool forward = true, backward = true;
  for (const std::vector<int64_t>& sizes : kSizes) {
    const at::Tensor x = (at::randn(sizes) + 3).to(type), grad = at::randn(sizes).to(type);
    const at::Tensor weight = at::rand({sizes[1]}) + 0.5, bias = at::randn({sizes[1]});
    const auto [out, mean, invstd] = ghn::batch_norm_act_cpu(x, weight, bias, kEps, relu);
    const at::Tensor wide = x.to(at::kDouble), scale = by_channel(weight.to(at::kDouble));
    const at::Tensor centred = wide - wide.mean(kOver, true);
    const at::Tensor inverse = (centred.square().mean(kOver, true) + kEps).rsqrt();
    const at::Tensor normal = centred * inverse;
    const at::Tensor y = normal * scale + by_channel(bias.to(at::kDouble));
    forward = forward && near(out, relu ? y.clamp_min(0) : y, unit);
    // Where a sign is a matter of rounding, the op's own decides.
    at::Tensor g = grad.to(at::kDouble);
    if (relu) g = g * (out.to(at::kDouble) > 0);
    const at::Tensor want = scale * inverse *
                            (g - g.mean(kOver, true) - normal * (g * normal).mean(kOver, true));
    const auto [grad_x, grad_weight, grad_bias] =
        ghn::batch_norm_act_backward_cpu(grad, x, weight, bias, mean, invstd, relu);
    backward = backward && near(grad_x, want, 10 * unit) &&
               near(grad_weight, (g * normal).sum(kOver), 1e-4) &&
               near(grad_bias, g.sum(kOver), 1e-4);
  }
  check(forward, "outputs follow the formula");
  check(backward, "gradients follow the formula");
}

void test_wrong_input() {
  const at::Tensor x = at::randn({2, 8, 4, 4}), good = at::ones({8}), bad = at::ones({7});
  const auto takes = [&](const at::Tensor& images, const at::Tensor& weight) {
    return !refused([&] { ghn::batch_norm_act_cpu(images, weight, {}, kEps, true); });
  };
  check(takes(x, good) && takes(at::randn({0, 8, 4, 4}), good), "right input is taken");
  check(!takes(x, bad) && !takes(x[0], good) && !takes(x.to(at::kDouble), good) &&
            !takes(x, good.to(at::kDouble)),
        "wrong input is refused");
  check(refused([&] {
          ghn::batch_norm_act_backward_cpu(x, x, good, {}, bad, good, false);
        }),
        "statistics of another shape are refused");
}

}  // namespace

int main() {
  at::manual_seed(0);
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    for (const bool relu : {false, true}) test_against_formulas(type, relu);
  }
  test_wrong_input();
  return exit_status();
}
