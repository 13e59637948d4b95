// The decoder without Python: against loops in double precision over random groups, at the edges of
// panels and of what is allowed, and with wrong input, which the sanitizers watch.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <cmath>
#include <random>
#include <vector>

#include "checks.h"
#include "ops.h"

namespace ghn {
inline constexpr tests::Op<std::vector<at::Tensor>(const at::Tensor&, const at::Tensor&,
                                                   at::IntArrayRef, at::TensorList, bool)>
    decode_blocks_cpu{"ghn_fast::decode_blocks"};
}  // namespace ghn

namespace {

using namespace ghn::tests;

struct Sizes {
  int64_t hid, out, in, size, channels, classes;
};

std::vector<at::Tensor> make_weights(const Sizes& s) {
  const int64_t c = s.hid;
  const int64_t layers[7][2] = {{4 * c * s.size * s.size, c}, {8 * c, 4 * c}, {s.out * s.in, 8 * c},
                                {s.classes, s.out},           {2 * c, c},     {2 * s.channels, 2 * c},
                                {s.classes, s.channels}};
  std::vector<at::Tensor> weights;
  for (const auto& [outputs, inputs] : layers) {
    weights.push_back(at::randn({outputs, inputs}) / std::sqrt(double(inputs)));
    weights.push_back(at::randn({outputs}));
  }
  return weights;
}

// What one layer makes of vectors (..., inputs).
at::Tensor linear(const at::Tensor& x, const std::vector<at::Tensor>& w, size_t layer) {
  return at::matmul(x, w[2 * layer].t()) + w[2 * layer + 1];
}

std::vector<at::Tensor> expected(const at::Tensor& x, const at::Tensor& nodes,
                                 const std::vector<int64_t>& numbers, const Sizes& s,
                                 const std::vector<at::Tensor>& weights) {
  std::vector<at::Tensor> w, result;
  for (const at::Tensor& weight : weights) w.push_back(weight.to(at::kDouble));
  int64_t first = 0;
  for (size_t g = 0; g < numbers.size(); g += 6) {
    const int64_t decoder = numbers[g], count = numbers[g + 5];
    const at::Tensor h = x.to(at::kDouble).index_select(0, nodes.slice(0, first, first + count));
    first += count;
    if (decoder == 1 || decoder == 3) {
      const at::Tensor vector =
          linear(at::relu(linear(h, w, 4)), w, 5).view({count, 2, s.channels});
      result.push_back(decoder == 1 ? vector : linear(at::relu(vector.select(1, 1)), w, 6));
      continue;
    }
    at::Tensor y = at::relu(linear(h, w, 0)).view({count, 4 * s.hid, s.size, s.size});
    y = linear(at::relu(linear(y.permute({0, 2, 3, 1}), w, 1)), w, 2);
    y = y.view({count, s.size, s.size, s.out, s.in}).permute({0, 3, 4, 1, 2});
    if (decoder == 2) {
      y = at::relu(y.select(3, 0).select(3, 0).slice(2, 0, numbers[g + 2]));
      result.push_back(linear(y.transpose(1, 2), w, 3).transpose(1, 2));
    } else {
      for (int64_t d = 0; d < 4; ++d) y = y.slice(d + 1, 0, numbers[g + 1 + size_t(d)]);
      result.push_back(y);
    }
  }
  return result;
}

void compare(const Sizes& s, unsigned seed) {
  at::manual_seed(seed);
  std::mt19937 random(seed);
  const auto draw = [&](int64_t from, int64_t to) {
    return from + int64_t(random() % uint64_t(to - from + 1));
  };
  const int64_t num_nodes = 23;
  std::vector<int64_t> numbers, nodes;
  const int64_t counts[] = {0, 1, 2, 7, 8, 9, 16, 17, 33};
  for (int g = 0; g < 14; ++g) {
    const int64_t count = counts[draw(0, 8)];
    const bool whole = draw(0, 1) == 0;
    for (const int64_t n :
         {draw(0, 5) % 4, whole ? s.out : draw(1, s.out), whole ? s.in : draw(1, s.in),
          draw(1, s.size), draw(1, s.size), count}) {
      numbers.push_back(n);
    }
    for (int64_t i = 0; i < count; ++i) nodes.push_back(draw(0, num_nodes - 1));
  }
  const at::Tensor x = at::randn({num_nodes, s.hid});
  const at::Tensor index = at::tensor(nodes, at::kLong);
  const std::vector<at::Tensor> weights = make_weights(s);
  const auto got = ghn::decode_blocks_cpu(x, index, numbers, weights, false);
  const auto want = expected(x, index, numbers, s, weights);
  bool fine = got.size() == want.size();
  for (size_t g = 0; fine && g < got.size(); ++g) {
    fine = got[g].sizes() == want[g].sizes() && got[g].is_contiguous() &&
           at::allclose(got[g].to(at::kDouble), want[g], 1e-5, 1e-5);
  }
  check(fine, "random groups");
}

void refuse() {
  const Sizes s{8, 6, 5, 3, 6, 4};
  const std::vector<at::Tensor> weights = make_weights(s);
  const at::Tensor x = at::randn({4, 8}), one = at::tensor({2}, at::kLong);
  const auto run = [&](const at::Tensor& nodes, std::vector<int64_t> numbers) {
    return [&weights, &x, nodes, numbers] { ghn::decode_blocks_cpu(x, nodes, numbers, weights, false); };
  };
  check(refused(run(one, {0, 7, 5, 3, 3, 1})), "too many out-channels");
  check(refused(run(one, {0, 6, 6, 3, 3, 1})), "too many in-channels");
  check(refused(run(one, {2, 6, 6, 1, 1, 1})), "too many in-channels of a classifier");
  check(refused(run(one, {0, 6, 5, 4, 3, 1})), "too high");
  check(refused(run(one, {0, 6, 5, 0, 3, 1})), "no height");
  check(refused(run(one, {0, 6, 5, 3, 3, 2})), "too few nodes");
  check(refused(run(one, {0, 6, 5, 3, 3, int64_t(1) << 62})), "far too few nodes");
  check(refused(run(one, {0, 6, 5, 3, 3, 0})), "too many nodes");
  check(refused(run(one, {0, 6, 5, 3, 3})), "a number is missing");
  check(refused(run(at::tensor({4}, at::kLong), {0, 6, 5, 3, 3, 1})), "a node that is not there");
  check(refused(run(at::tensor({-1}, at::kLong), {1, 1, 1, 1, 1, 1})), "a negative node");
  for (size_t i = 0; i < weights.size(); ++i) {
    std::vector<at::Tensor> wrong = weights;
    wrong[i] = wrong[i].slice(0, 1);
    const std::vector<int64_t> numbers = {0, 6, 5, 3, 3, 1};
    check(refused([&] { ghn::decode_blocks_cpu(x, one, numbers, wrong, false); }),
          "a layer of another size");
  }
}

}  // namespace

int main() {
  for (const int threads : {1, 3}) {
    at::set_num_threads(threads);
    for (unsigned seed = 0; seed < 4; ++seed) {
      compare({8, 16, 16, 3, 16, 5}, seed);
      compare({4, 3, 7, 2, 7, 3}, seed);
      compare({12, 5, 2, 1, 5, 1}, seed);
    }
  }
  refuse();
  return exit_status();
}
