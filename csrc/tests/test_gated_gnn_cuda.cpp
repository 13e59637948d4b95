// The CUDA kernels of the gated GNN, run on the host: against the loop over the nodes and the CPU
// op, forward and backward, with everything in shared memory and with nothing but what has to be.
#include <ATen/Parallel.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cmath>
#include <limits>

#include "../cuda/gated_gnn_backward.h"
#include "../cuda/gated_gnn_forward.h"
#include "../cuda/gated_gnn_run.h"
#include "emulated_block.h"
#include "gated_gnn_cases.h"

namespace {

using namespace ghn;
using namespace ghn::cases;
using namespace ghn::tests;
using emulation::Order;

// What gated_gnn.cu does on a GPU.
struct EmulatedLaunches {
  int64_t most;  // bytes of shared memory
  int64_t largest_graph;
  int blocks = 2;
  Order order = Order::ascending;

  template <class T>
  void pack(const cuda::Problem& problem, void* const* given, bool backward, T* packed) const {
    std::fill(packed, packed + PackedWeights<T>::size(problem.shape.record), T(0));
    with_element<T>(problem.element, [&](auto in) {
      each_weight_block<const decltype(in)>(
          problem.shape, given, PackedWeights<T>::at(packed, problem.shape.record), backward,
          PackBlock{});
    });
  }

  template <class T>
  void forward(const cuda::ForwardArgs<T>& args) const {
    launch<T>(args, false, [&](auto in, const auto& block, int64_t tile, cuda::Arena<T> arena) {
      cuda::forward_block<decltype(in)>(block, args, tile, arena);
    });
  }

  template <class T>
  void backward(const cuda::BackwardArgs<T>& args) const {
    launch<T>(args, true, [&](auto in, const auto& block, int64_t tile, cuda::Arena<T> arena) {
      cuda::backward_block<decltype(in)>(block, args, tile, arena);
    });
  }

  template <class T, class Args, class Kernel>
  void launch(const Args& args, bool backward, const Kernel& kernel) const {
    const auto footprint = cuda::choose_tile<T>(args.problem.shape.record, backward, most);
    TORCH_CHECK(footprint.tile > 0, "a node does not fit into shared memory");
    const int64_t size = footprint.bytes(largest_graph, most, sizeof(T)) / int64_t(sizeof(T));
    TORCH_CHECK(size * int64_t(sizeof(T)) <= most);
    for (int b = 0; b < blocks; ++b) {
      // NaN shows what is read before it has been written, the sanitizer what lies behind the end.
      const at::Tensor shared = at::full({size}, std::numeric_limits<double>::quiet_NaN(),
                                         c10::CppTypeToScalarType<T>::value);
      emulation::Threads threads(cuda::kThreads, order);
      with_element<T>(args.problem.element, [&](auto in) {
        threads.run([&] {
          kernel(in, emulation::Block{&threads, b, blocks}, footprint.tile,
                 cuda::Arena<T>{shared.data_ptr<T>(), size});
        });
      });
    }
  }

  template <class T, class Run>
  static void with_element(cuda::Element element, const Run& run) {
    if constexpr (sizeof(T) == 4) {
      if (element == cuda::Element::float16) return run(c10::Half{});
      if (element == cuda::Element::bfloat16) return run(c10::BFloat16{});
    }
    run(T{});
  }
};

struct Results {
  at::Tensor out, saved, grad_x;
  std::vector<at::Tensor> grad_weights;
};

Results run(const EmulatedLaunches& launches, const Case& a, const at::Tensor& plan,
            const at::Tensor& probe, int64_t steps) {
  const GatedGnnArgs args = gated_gnn_args(a.x, plan, a.weights, steps);
  Results found;
  std::tie(found.out, found.saved) = cuda::run_forward(launches, args, a.x, plan, steps, true);
  std::tie(found.grad_x, found.grad_weights) =
      cuda::run_backward(launches, args, probe, a.x, plan, found.saved, steps);
  return found;
}

// Largest difference, of the largest element.
double error(const at::Tensor& found, const at::Tensor& expected) {
  if (!at::isfinite(found).all().item<bool>()) return INFINITY;
  const double scale = largest(expected);
  return largest(found.to(at::kDouble) - expected.to(at::kDouble)) / (scale > 0 ? scale : 1.0);
}

double error(const Results& found, const Results& expected) {
  double worst = std::max(error(found.out, expected.out), error(found.grad_x, expected.grad_x));
  for (size_t i = 0; i < expected.grad_weights.size(); ++i) {
    worst = std::max(worst, error(found.grad_weights[i], expected.grad_weights[i]));
  }
  return worst;
}

bool same_bits(const Results& a, const Results& b) {
  bool same = at::equal(a.out, b.out) && at::equal(a.grad_x, b.grad_x);
  for (size_t i = 0; i < a.grad_weights.size(); ++i) {
    same = same && at::equal(a.grad_weights[i], b.grad_weights[i]);
  }
  return same;
}

struct Size {
  std::vector<int64_t> graphs;
  int64_t c, h, steps;
};

void test_size(const Size& size, bool virtual_edges, at::ScalarType dtype) {
  const Case exact = make_case(size.graphs, size.c, size.h, virtual_edges);
  // The reference gets what the narrow type has left of the values.
  const Case a = exact.to(dtype), reference = a.to(at::kDouble);
  const at::Tensor plan = gated_gnn_plan_cpu(a.edges, a.offsets);
  const at::Tensor probe = at::randn_like(exact.x).to(dtype);
  Results expected;
  std::tie(expected.out, expected.saved) =
      gated_gnn_forward_cpu(reference.x, plan, reference.weights, size.steps, true);
  std::tie(expected.grad_x, expected.grad_weights) =
      gated_gnn_backward_cpu(probe.to(at::kDouble), reference.x, plan, reference.weights,
                             expected.saved, size.steps);
  const int64_t largest_graph = *std::max_element(size.graphs.begin(), size.graphs.end());
  const double allowed = dtype == at::kDouble ? 1e-12 : dtype == at::kFloat ? 2e-5 : 1e-2;
  char what[200];
  std::snprintf(what, sizeof(what), "%s, hid %ld, hidden %ld, %s virtual edges",
                c10::toString(dtype), long(size.c), long(size.h), virtual_edges ? "with" : "no");
  std::printf("%s\n", what);

  const double of_loop = error(expected.out, loop(reference, size.steps));
  check(of_loop < 1e-12, "the CPU op equals the loop over the nodes");
  const EmulatedLaunches roomy{232448, largest_graph};
  const Results found = run(roomy, a, plan, probe, size.steps);
  std::printf("  error %.2g\n", error(found, expected));
  check(error(found, expected) < allowed, "the kernels equal the CPU op");
  const auto without = cuda::run_forward(roomy, gated_gnn_args(a.x, plan, a.weights, size.steps),
                                         a.x, plan, size.steps, false);
  check(at::equal(std::get<0>(without), found.out), "the same bits without a record");
  for (const Order order : {Order::descending, Order::shuffled}) {
    EmulatedLaunches other = roomy;
    other.order = order, other.blocks = 1;
    check(same_bits(run(other, a, plan, probe, size.steps), found),
          "the same bits in another order of threads, and with one block");
  }
  // Just what a tile of one node needs: weights and messages lie in global memory.
  const Record record = gated_gnn_args(a.x, plan, a.weights, size.steps).record;
  const int64_t element = dtype == at::kDouble ? 8 : 4;
  const int64_t least = element * std::max(cuda::Footprint::forward(record, 1, 0).work,
                                           cuda::Footprint::backward(record, 1, 0).work);
  check(error(run({least, largest_graph}, a, plan, probe, size.steps), expected) < allowed,
        "with as little shared memory as can be");
  check(refused([&] { run({least - 16, largest_graph}, a, plan, probe, size.steps); }),
        "with less it does not start");
}

// Distances beyond the table of their inverses, and a record that does not begin where four elements
// can be read at a time.
void test_far_distances_and_odd_records() {
  Case a = make_case({14, 9}, 8, 4, true);
  a.edges.select(1, 2).mul_(a.edges.select(1, 2).gt(1).to(at::kLong) * 5 + 1);
  const at::Tensor enough = a.edges.select(1, 2).clamp(1, 23);
  a.edges.select(1, 2).copy_(enough);
  // A graph needs as many nodes as its largest distance: 70 more, without edges.
  a.offsets = at::tensor({0, 14, 23, 93}, at::kLong);
  a.x = at::randn({93, 8}, at::kDouble);
  a.edges[0][2] = 90;
  const at::Tensor plan = gated_gnn_plan_cpu(a.edges, a.offsets), probe = at::randn_like(a.x);
  Results expected;
  std::tie(expected.out, expected.saved) = gated_gnn_forward_cpu(a.x, plan, a.weights, 1, true);
  std::tie(expected.grad_x, expected.grad_weights) =
      gated_gnn_backward_cpu(probe, a.x, plan, a.weights, expected.saved, 1);
  const EmulatedLaunches launches{232448, 70};
  const Results found = run(launches, a, plan, probe, 1);
  check(error(found, expected) < 1e-12, "distances beyond the table are divided by");
  const at::Tensor odd = at::empty({found.saved.numel() + 1}, found.saved.options()).narrow(
      0, 1, found.saved.numel()).view(found.saved.sizes());
  odd.copy_(found.saved);
  const auto again = cuda::run_backward(launches, gated_gnn_args(a.x, plan, a.weights, 1), probe,
                                        a.x, plan, odd, 1);
  check(at::equal(std::get<0>(again), found.grad_x), "the same bits from an odd address");
}

// Whatever a plan's memory holds, the kernels end and stay in bounds, which the sanitizers watch.
void test_wild_plans() {
  const Case a = make_case({6, 4}, 5, 3, true);
  const at::Tensor plan = gated_gnn_plan_cpu(a.edges, a.offsets);
  const int32_t values[] = {-1, 3, 2147483647, -2147483647 - 1};
  const EmulatedLaunches launches{232448, 6, 1};
  int64_t nans = 0;
  for (int64_t i = 0; i < plan.numel(); i += i < Plan::kHeader ? 1 : 3) {
    for (const int32_t value : values) {
      const at::Tensor wild = plan.clone();
      wild[i] = value;
      const Results found = run(launches, a, wild, a.x, 1);
      nans += i < 6 && at::isnan(found.out).all().item<bool>();
    }
  }
  check(nans >= 20, "a plan that does not belong to x gives NaN");
}

}  // namespace

int main() {
  at::manual_seed(0);
  at::set_num_threads(1);
  const std::vector<Size> sizes = {{{7, 1, 12, 0, 5}, 8, 4, 2}, {{9, 20}, 32, 16, 1},
                                   {{11}, 64, 64, 1},           {{6}, 128, 64, 1},
                                   {{12}, 12, 6, 1}};
  for (const bool virtual_edges : {true, false}) {
    for (const Size& size : sizes) test_size(size, virtual_edges, at::kDouble);
    test_size(sizes[1], virtual_edges, at::kFloat);
    test_size(sizes[1], virtual_edges, at::kBFloat16);
  }
  // Many nodes to a level, and rows wider than the block.
  test_size({{40}, 8, 4, 1}, true, at::kFloat);
  test_size({{3, 2}, 300, 20, 1}, true, at::kDouble);
  test_size({{5}, 16, 8, 1}, true, at::kHalf);
  test_far_distances_and_odd_records();
  test_wild_plans();
  return exit_status();
}
