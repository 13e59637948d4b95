// Attention within graphs without Python: against loops in double precision over graphs of sizes
// around those of vectors and blocks, its gradients against autograd's in double precision, and with
// wrong input, which the sanitizers watch.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <cmath>
#include <random>
#include <tuple>
#include <vector>

#include "checks.h"
#include "graph_attention_ops.h"

namespace {

using namespace ghn::tests;

struct Case {
  at::Tensor qkv, codes, table;
  std::vector<int64_t> offsets;
};

Case make(const std::vector<int64_t>& sizes, int64_t heads, int64_t width, int64_t rows) {
  Case made;
  made.offsets = {0};
  int64_t pairs = 0;
  for (const int64_t size : sizes) {
    made.offsets.push_back(made.offsets.back() + size);
    pairs += size * size;
  }
  made.qkv = at::randn({made.offsets.back(), 3, heads, width});
  made.table = at::randn({rows, heads});
  made.codes = at::randint(0, rows, {pairs}, at::kLong).to(rows <= 256 ? at::kByte : at::kShort);
  return made;
}

// Outputs, log-sums and gradients for the gradient `grad` of the outputs, in double precision.
struct Expected {
  at::Tensor out, logsum, grad_qkv, grad_table;
};

Expected expected(const Case& given, const at::Tensor& grad) {
  const at::Tensor x = given.qkv.to(at::kDouble), table = given.table.to(at::kDouble);
  const int64_t nodes = x.size(0), heads = x.size(2), width = x.size(3);
  Expected want{at::zeros({nodes, heads * width}, at::kDouble), at::zeros({nodes, heads}, at::kDouble),
                at::zeros_like(x), at::zeros_like(table)};
  int64_t pair = 0;
  for (size_t g = 0; g + 1 < given.offsets.size(); ++g) {
    const int64_t first = given.offsets[g], last = given.offsets[g + 1], n = last - first;
    if (n == 0) continue;
    const at::Tensor code = given.codes.slice(0, pair, pair + n * n).to(at::kLong);
    pair += n * n;
    for (int64_t h = 0; h < heads; ++h) {
      const auto part = [&](int64_t p) { return x.slice(0, first, last).select(1, p).select(1, h); };
      const at::Tensor q = part(0), k = part(1), v = part(2);
      const double scale = 1 / std::sqrt(double(width));
      const at::Tensor logits =
          at::matmul(q, k.t()) * scale + table.select(1, h).index_select(0, code).view({n, n});
      const at::Tensor p = logits.softmax(1);
      const auto columns = [&](const at::Tensor& t) {
        return t.slice(0, first, last).slice(1, h * width, (h + 1) * width);
      };
      columns(want.out).copy_(at::matmul(p, v));
      want.logsum.slice(0, first, last).select(1, h).copy_(logits.logsumexp(1));
      const at::Tensor d_out = columns(grad.to(at::kDouble));
      const at::Tensor d_p = at::matmul(d_out, v.t());
      const at::Tensor d_logits = p * (d_p - (p * d_p).sum(1, true));
      const auto d_part = [&](int64_t at) {
        return want.grad_qkv.slice(0, first, last).select(1, at).select(1, h);
      };
      d_part(0).copy_(at::matmul(d_logits, k) * scale);
      d_part(1).copy_(at::matmul(d_logits.t(), q) * scale);
      d_part(2).copy_(at::matmul(p.t(), d_out));
      want.grad_table.select(1, h).index_add_(0, code, d_logits.reshape({-1}));
    }
  }
  return want;
}

bool close(const at::Tensor& got, const at::Tensor& want) {
  return got.sizes() == want.sizes() && got.is_contiguous() &&
         at::allclose(got.to(at::kDouble), want, 1e-4, 1e-5);
}

void compare(const Case& given) {
  const auto [out, logsum] =
      ghn::graph_attention_cpu(given.qkv, given.codes, given.offsets, given.table);
  const at::Tensor grad = at::randn(out.sizes());
  const auto [grad_qkv, grad_table] = ghn::graph_attention_backward_cpu(
      grad, given.qkv, given.codes, given.offsets, given.table, out, logsum);
  const Expected want = expected(given, grad);
  check(close(out, want.out) && close(logsum, want.logsum), "outputs");
  check(close(grad_qkv, want.grad_qkv) && close(grad_table, want.grad_table), "gradients");
}

void refuse() {
  const Case fine = make({3, 4}, 2, 3, 5);
  const auto run = [](const at::Tensor& qkv, const at::Tensor& codes, std::vector<int64_t> offsets,
                      const at::Tensor& table) {
    return [=] { ghn::graph_attention_cpu(qkv, codes, offsets, table); };
  };
  check(refused(run(fine.qkv, fine.codes + 5, fine.offsets, fine.table)), "codes that are not there");
  check(refused(run(fine.qkv, fine.codes.slice(0, 1), fine.offsets, fine.table)), "too few codes");
  check(refused(run(fine.qkv, fine.codes.to(at::kLong), fine.offsets, fine.table)), "long codes");
  check(refused(run(fine.qkv, fine.codes, {0, 8, 7}, fine.table)), "offsets that descend");
  check(refused(run(fine.qkv, fine.codes, {}, fine.table)), "no offsets");
  check(refused(run(fine.qkv.slice(1, 0, 2), fine.codes, fine.offsets, fine.table)), "no values");
  check(refused(run(fine.qkv, fine.codes, fine.offsets, fine.table.slice(1, 1))), "too few heads");
  check(refused(run(fine.qkv, (fine.codes.to(at::kShort) - 9), fine.offsets, fine.table)),
        "negative codes");
}

}  // namespace

int main() {
  for (const int threads : {1, 3}) {
    at::set_num_threads(threads);
    at::manual_seed(threads);
    // Rows of biases in registers, beside them, and as wide codes.
    for (const int64_t rows : {1, 101, 128, 129, 256, 300}) compare(make({1, 5, 16, 33}, 2, 8, rows));
    for (const int64_t width : {1, 3, 7, 8, 16, 24, 31}) compare(make({7, 17, 0, 64}, 3, width, 101));
    compare(make({}, 2, 4, 3));
    compare(make({0, 0}, 2, 4, 3));
  }
  refuse();
  return exit_status();
}
