// The CUDA kernels of attention within graphs, run on the host: against the CPU op, forward and
// backward, with threads in several orders.
#include <ATen/ATen.h>

#include <limits>
#include <vector>

#include "../cuda/graph_attention_block.h"
#include "../cuda/graph_attention_run.h"
#include "checks.h"
#include "emulated_block.h"
#include "graph_attention_ops.h"

namespace {

using namespace ghn;
using namespace ghn::tests;
using emulation::Order;

// A block has a number along the heads, too.
struct Block : emulation::Block {
  int64_t at_head;

  int64_t head() const { return at_head; }
};

// What graph_attention.cu does on a GPU.
struct EmulatedLaunches {
  Order order;

  template <class Kernel>
  void launch(const cuda::AttentionArgs& args, int64_t tiles, int64_t floats,
              const Kernel& kernel) const {
    for (int64_t tile = 0; tile < tiles; ++tile) {
      for (int64_t head = 0; head < args.heads; ++head) {
        // NaN shows what is read before it has been written, the sanitizer what lies behind the end.
        const at::Tensor shared =
            at::full({floats}, std::numeric_limits<float>::quiet_NaN(), at::kFloat);
        emulation::Threads threads(cuda::kAttentionThreads, order);
        threads.run([&] {
          kernel(Block{{&threads, int(tile), int(tiles)}, head}, shared.data_ptr<float>());
        });
      }
    }
  }

  void forward(const cuda::AttentionArgs& args, const cuda::Graphs& graphs, int64_t tiles) const {
    cuda::with_width(args.width, [&]<int D>() {
      launch(args, tiles, cuda::AttentionShared::forward(args.rows, D),
             [&](const Block& block, float* shared) {
               cuda::attention_forward<D>(block, args, graphs, shared);
             });
    });
  }

  void backward(const cuda::AttentionArgs& args, const cuda::Graphs& graphs, int64_t tiles) const {
    cuda::with_width(args.width, [&]<int D>() {
      launch(args, tiles, cuda::AttentionShared::queries(args.rows, D),
             [&](const Block& block, float* shared) {
               cuda::attention_queries<D>(block, args, graphs, shared);
             });
      launch(args, tiles, cuda::AttentionShared::keys(args.rows, D),
             [&](const Block& block, float* shared) {
               cuda::attention_keys<D>(block, args, graphs, shared);
             });
    });
  }
};

bool close(const at::Tensor& got, const at::Tensor& want) {
  return got.sizes() == want.sizes() && got.is_contiguous() && at::allclose(got, want, 1e-4, 1e-5);
}

struct Results {
  at::Tensor out, logsum, grad_qkv, grad_table;

  bool same_bits(const Results& other) const {
    return at::equal(out, other.out) && at::equal(logsum, other.logsum) &&
           at::equal(grad_qkv, other.grad_qkv) && at::equal(grad_table, other.grad_table);
  }
};

Results run(Order order, const cuda::AttentionInputs& given, const at::Tensor& probe) {
  Results found;
  const EmulatedLaunches launches{order};
  const auto forward = cuda::run_attention(launches, given);
  std::tie(found.out, found.logsum) = torchs(forward);
  std::tie(found.grad_qkv, found.grad_table) = torchs(cuda::run_attention_backward(
      launches, given, ours(probe), std::get<0>(forward), std::get<1>(forward)));
  return found;
}

void compare(const std::vector<int64_t>& sizes, int64_t heads, int64_t width, int64_t rows) {
  std::vector<int64_t> offsets = {0};
  int64_t pairs = 0;
  for (const int64_t size : sizes) {
    offsets.push_back(offsets.back() + size);
    pairs += size * size;
  }
  const at::Tensor qkv = at::randn({offsets.back(), 3, heads, width});
  const at::Tensor table = at::randn({rows, heads});
  const at::Tensor codes =
      at::randint(0, rows, {pairs}, at::kLong).to(rows <= 256 ? at::kByte : at::kShort);
  const at::Tensor probe = at::randn({offsets.back(), heads * width});
  const cuda::AttentionInputs given(ours(qkv), ours(codes), offsets, ours(table));
  const Results found = run(Order::ascending, given, probe);
  const auto [out, logsum] = graph_attention_cpu(qkv, codes, offsets, table);
  const auto [grad_qkv, grad_table] =
      graph_attention_backward_cpu(probe, qkv, codes, offsets, table, out, logsum);
  check(close(found.out, out) && close(found.logsum, logsum), "outputs are those of the CPU op");
  check(close(found.grad_qkv, grad_qkv) && close(found.grad_table, grad_table),
        "gradients are those of the CPU op");
  check(found.same_bits(run(Order::descending, given, probe)) &&
            found.same_bits(run(Order::shuffled, given, probe)),
        "no race: the same bits in every order of threads");
}

void unknown_codes() {
  at::Tensor codes = at::zeros({4 + 9}, at::kByte);
  codes.data_ptr<uint8_t>()[5] = 7;
  const at::Tensor qkv = at::randn({5, 3, 1, 4});
  const std::vector<int64_t> offsets = {0, 2, 5};
  const auto [out, logsum] = torchs(cuda::run_attention(
      EmulatedLaunches{Order::ascending},
      cuda::AttentionInputs(ours(qkv), ours(codes), offsets, ours(at::zeros({3, 1})))));
  const at::Tensor is_nan = out.isnan().all(1);
  check(is_nan.sum().item<int64_t>() == 1 && is_nan[2].item<bool>(), "an unknown code makes NaN");
}

void refuse() {
  const at::Tensor qkv = at::zeros({5, 3, 2, 4}), table = at::zeros({3, 2});
  const at::Tensor codes = at::zeros({13}, at::kByte);
  const auto given = [](const at::Tensor& x, const at::Tensor& c, std::vector<int64_t> offsets,
                        const at::Tensor& t) {
    return [=] { cuda::AttentionInputs(ours(x), ours(c), offsets, ours(t)); };
  };
  check(!refused(given(qkv, codes, {0, 2, 5}, table)), "what is right");
  check(refused(given(qkv, codes, {0, 3, 2, 5}, table)), "offsets that descend");
  check(refused(given(qkv, codes, {}, table)), "no offsets");
  check(refused(given(qkv, codes.slice(0, 1), {0, 2, 5}, table)), "too few codes");
  check(refused(given(qkv, codes, {0, 2, 5}, table.slice(1, 1))), "too few heads");
  check(refused(given(at::zeros({5, 3, 2, 33}), codes, {0, 2, 5}, table)), "too wide heads");
}

}  // namespace

int main() {
  at::manual_seed(0);
  compare({5, 1, 0, 66}, 2, 8, 101);
  compare({64, 65}, 1, 5, 3);
  compare({70}, 1, 24, 300);
  compare({3, 4}, 1, 32, 9);
  compare({}, 2, 4, 3);
  compare(std::vector<int64_t>(cuda::kMostGraphs + 3, 2), 1, 3, 4);  // more than a launch takes
  unknown_codes();
  refuse();
  return exit_status();
}
