// The expansion of parameters without Python: against a loop over the elements, against finite
// differences, the walk of the CUDA kernels thread by thread, and tables that were tampered with.
#include <ATen/ATen.h>

#include <bit>
#include <cmath>
#include <optional>
#include <vector>

#include "../common/expand_params_args.h"
#include "../common/expand_params_walk.h"
#include "checks.h"
#include "ops.h"

namespace ghn {
inline constexpr tests::Op<at::Tensor(at::TensorList, const at::Tensor&,
                                      const std::optional<at::Tensor>&, int64_t)>
    expand_params_cpu{"ghn_fast::expand_params"};
inline constexpr tests::Op<std::vector<at::Tensor>(
    const at::Tensor&, at::TensorList, const at::Tensor&, const std::optional<at::Tensor>&)>
    expand_params_backward_cpu{"ghn_fast::expand_params_backward"};
inline constexpr tests::Op<void(at::TensorList, const at::Tensor&, at::TensorList)>
    expand_params_into_cpu{"ghn_fast::expand_params_into"};
inline constexpr tests::Op<at::Tensor(const at::Tensor&, at::TensorList, int64_t)>
    expand_params_pack{"ghn_fast::expand_params_pack"};
}  // namespace ghn

namespace {

using namespace ghn::tests;

struct Case {
  std::vector<at::Tensor> blocks;
  at::Tensor table;
  int64_t numel = 0;
};

// Pairs of block shape and shape; the blocks lie two in a tensor, and some rows share one. Offsets
// are rounded up to multiples of `align`.
Case make_case(int64_t align, at::ScalarType type) {
  const std::vector<std::vector<int64_t>> shapes = {
      {8, 8, 3, 3, 8, 8, 3, 3},   {8, 8, 3, 3, 5, 3, 1, 2},     {8, 8, 3, 3, 20, 9, 3, 3},
      {8, 4, 1, 1, 3, 17, 1, 1},  {4, 4, 2, 2, 9, 2, 5, 3},     {6, 1, 1, 1, 13, 1, 1, 1},
      {2, 2, 1, 1, 0, 2, 1, 1},   {16, 16, 1, 1, 40, 64, 1, 1}, {64, 1, 1, 1, 5000, 1, 1, 1},
      {16, 16, 3, 3, 64, 48, 3, 3}, {10, 64, 1, 1, 10, 300, 1, 1},
      {32, 16, 3, 3, 100, 16, 3, 3}};
  Case result;
  std::vector<int64_t> table;
  for (size_t i = 0; i < shapes.size(); ++i) {
    const auto& s = shapes[i];
    const int64_t block = s[0] * s[1] * s[2] * s[3], size = s[4] * s[5] * s[6] * s[7];
    result.blocks.push_back(at::randn({2, block}, at::kDouble).to(type));
    for (int64_t row = 0; row < 3; ++row) {  // the last two read the same block
      result.numel = (result.numel + align - 1) / align * align;
      table.insert(table.end(), {int64_t(i), block * (row > 0)});
      table.insert(table.end(), s.begin(), s.end());
      table.insert(table.end(), {int64_t(i + size_t(row)) % 4, result.numel,
                                 std::bit_cast<int64_t>(0.25 + double(i))});
      result.numel += size;
    }
  }
  result.numel += 5;
  result.table = at::tensor(table, at::kLong).view({-1, ghn::kTableColumns});
  return result;
}

template <class T>
at::Tensor loop(const Case& a) {
  at::Tensor flat = at::zeros({a.numel}, a.blocks[0].options());
  T* to = flat.data_ptr<T>();
  const auto t = a.table.accessor<int64_t, 2>();
  for (int64_t r = 0; r < a.table.size(0); ++r) {
    const T* block = a.blocks[size_t(t[r][0])].const_data_ptr<T>() + t[r][1];
    int64_t e = t[r][11];
    for (int64_t o = 0; o < t[r][6]; ++o)
      for (int64_t i = 0; i < t[r][7]; ++i)
        for (int64_t h = 0; h < t[r][8]; ++h)
          for (int64_t w = 0; w < t[r][9]; ++w) {
            const T x = block[((o % t[r][2] * t[r][3] + i % t[r][3]) * t[r][4] + h % t[r][4]) *
                                  t[r][5] + w % t[r][5]];
            T y = x;
            if (t[r][10] == 1) y = x * T(std::bit_cast<double>(t[r][12]));
            if (t[r][10] == 2) y = 2 / (1 + std::exp(-x / 2));
            if (t[r][10] == 3) y = std::tanh(x / 5);
            to[e++] = y;
          }
  }
  return flat;
}

double largest(const at::Tensor& t) { return t.numel() == 0 ? 0 : t.abs().max().item<double>(); }

// All blocks of threads and all threads of a launch, one after the other.
template <class T>
at::Tensor walk_forward(const Case& a, const at::Tensor& packed, int64_t grid) {
  const int64_t segments = ghn::ExpandPlan::segments_in(packed.numel(), a.table.size(0));
  const auto plan =
      ghn::ExpandPlan::read(packed.const_data_ptr<uint8_t>(), a.table.size(0), segments);
  at::Tensor out = at::full({a.numel}, NAN, a.blocks[0].options());
  const auto block_at = [&](int32_t b) { return a.blocks[size_t(b)].const_data_ptr<T>(); };
  for (int64_t block = 0; block < grid; ++block) {
    for (uint32_t thread = 0; thread < ghn::kThreads; ++thread) {
      ghn::expand_thread<T>(plan, block_at, true, block, grid, thread, out.data_ptr<T>());
    }
  }
  return out;
}

template <class T>
std::vector<at::Tensor> walk_backward(const Case& a, const at::Tensor& packed,
                                      const at::Tensor& grad) {
  const int64_t segments = ghn::ExpandPlan::segments_in(packed.numel(), a.table.size(0));
  const auto plan =
      ghn::ExpandPlan::read(packed.const_data_ptr<uint8_t>(), a.table.size(0), segments);
  std::vector<at::Tensor> grads;
  for (const at::Tensor& block : a.blocks) grads.push_back(at::full_like(block, NAN));
  for (int64_t s = 0; s < segments; ++s) {
    const ghn::ExpandSegment& segment = plan.segments[s];
    const int64_t after = s + 1 < segments ? plan.segments[s + 1].tile : plan.header->segment_tiles;
    for (int64_t tile = segment.tile; tile < after; ++tile) {
      std::vector<T> sums(size_t(segment.width), T(0));
      for (uint32_t thread = 0; thread < ghn::kThreads; ++thread) {
        const ghn::GradientPlace place(segment, tile, thread);
        sums[place.lane] += ghn::partial_gradient<T>(
            plan, segment, place, grad.const_data_ptr<T>(),
            a.blocks[size_t(segment.block)].const_data_ptr<T>());
      }
      for (int64_t lane = 0; lane < segment.width; ++lane) {
        const ghn::GradientPlace place(segment, tile, uint32_t(lane));
        if (place.element < segment.end) {
          grads[size_t(segment.block)].view(-1)[place.element] = sums[size_t(lane)];
        }
      }
    }
  }
  return grads;
}

template <class T>
void test_values(int64_t align) {
  constexpr double kTolerance = sizeof(T) == 8 ? 1e-13 : 1e-5;
  const Case a = make_case(align, c10::CppTypeToScalarType<T>::value);
  const at::Tensor flat = ghn::expand_params_cpu(a.blocks, a.table, {}, a.numel);
  check(largest(flat - loop<T>(a)) < kTolerance, "values equal the loop over the elements");

  const at::Tensor packed = ghn::expand_params_pack(a.table, a.blocks, a.numel);
  for (const int64_t grid : {1, 7, 1000}) {
    // NaN differs from everything: what is not written shows.
    check(largest(walk_forward<T>(a, packed, grid) - flat) < kTolerance,
          "the walk of the CUDA kernel gives the same values");
  }
  const at::Tensor grad = at::randn_like(flat);
  const auto grads = ghn::expand_params_backward_cpu(grad, a.blocks, a.table, {});
  const auto walked = walk_backward<T>(a, packed, grad);
  double worst = 0;
  for (size_t i = 0; i < grads.size(); ++i) {
    const double difference = largest(walked[i] - grads[i]);
    worst = difference <= worst ? worst : difference;
  }
  check(worst < 1e3 * kTolerance, "the walk of the CUDA kernel gives the same gradients");

  if (sizeof(T) < 8) return;
  for (size_t i = 0; i < a.blocks.size(); ++i) {
    const at::Tensor direction = at::randn_like(a.blocks[i]), before = a.blocks[i].clone();
    double value[2];
    for (int side = 0; side < 2; ++side) {
      a.blocks[i].copy_(before + (side ? -1e-6 : 1e-6) * direction);
      value[side] = (loop<T>(a) * grad).sum().template item<double>();
    }
    a.blocks[i].copy_(before);
    const double slope = (value[0] - value[1]) / 2e-6;
    const double found = (grads[i] * direction).sum().template item<double>();
    check(std::abs(slope - found) < 1e-6 * (1 + std::abs(slope)),
          "gradients equal finite differences");
  }
}

void test_destinations() {
  const Case a = make_case(1, at::kFloat);
  const at::Tensor flat = loop<float>(a);
  std::vector<at::Tensor> out;
  const at::ScalarType types[] = {at::kFloat, at::kHalf, at::kDouble, at::kBFloat16};
  const auto t = a.table.accessor<int64_t, 2>();
  for (int64_t r = 0; r < a.table.size(0); ++r) {
    at::Tensor tensor = at::full({t[r][6], t[r][7], t[r][8], t[r][9]}, NAN, types[r % 4]);
    out.push_back(r % 5 == 0 ? tensor.contiguous(at::MemoryFormat::ChannelsLast) : tensor);
  }
  ghn::expand_params_into_cpu(a.blocks, a.table, out);
  bool fine = true;
  for (int64_t r = 0; r < a.table.size(0); ++r) {
    const at::Tensor want = flat.narrow(0, t[r][11], out[size_t(r)].numel());
    const at::Tensor got = out[size_t(r)].to(at::kFloat).reshape(-1);
    const double tolerance = r % 4 == 3 ? 1e-2 : r % 4 == 1 ? 2e-3 : 1e-5;
    fine = fine && at::allclose(got, want, tolerance, tolerance);
  }
  check(fine, "destinations of every type and order get the values");
}

void test_wild_tables() {
  const Case a = make_case(1, at::kDouble);
  const at::Tensor grad = at::randn({a.numel}, at::kDouble);
  const int64_t values[] = {-1, 0, 1, 7, 100000, int64_t(1) << 31, int64_t(1) << 62, INT64_MIN};
  int64_t caught = 0;
  for (int64_t r = 0; r < a.table.size(0); r += 4) {
    for (int64_t column = 0; column < 12; ++column) {
      for (const int64_t value : values) {
        at::Tensor wild = a.table.clone();
        wild[r][column] = value;
        caught += refused([&] {
          ghn::expand_params_cpu(a.blocks, wild, {}, a.numel);
          ghn::expand_params_backward_cpu(grad, a.blocks, wild, {});
          ghn::expand_params_pack(wild, a.blocks, a.numel);
        });
      }
    }
  }
  check(caught > 300, "wild tables are refused, or harmless");
}

}  // namespace

int main() {
  at::manual_seed(0);
  for (const int64_t align : {1, 16}) {
    test_values<double>(align);
    test_values<float>(align);
  }
  test_destinations();
  test_wild_tables();
  return exit_status();
}
