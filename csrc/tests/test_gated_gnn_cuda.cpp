// The CUDA kernels of the gated GNN, run on the host: against the loop over the nodes and the CPU
// op, forward and backward, with everything in shared memory and with nothing but what has to be.
#include <ATen/Parallel.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cmath>
#include <limits>
#include <random>
#include <set>
#include <type_traits>

#include "../cuda/gated_gnn_ahead_backward.h"
#include "../cuda/gated_gnn_ahead_forward.h"
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
  bool ahead = true;  // as on a GPU; otherwise the kernels that are for all weights
  bool far = false;   // where the forward of these has its rows
  // What shared memory holds at first. NaN shows what is read before it has been written; what lies
  // behind the end is the sanitizer's.
  double empty = std::numeric_limits<double>::quiet_NaN();
  emulation::Barriers* barriers[2] = {nullptr, nullptr};  // of the kernels that sum edges ahead

  template <class T>
  void pack(const cuda::Problem& problem, void* const* given, bool backward, T* packed) const {
    const Shape& shape = problem.shape;
    std::fill(packed, packed + PackedWeights<T>::size(shape.record), T(0));
    with_element<T>(problem.element, [&](auto in) {
      over_weights(shape, [&](const auto& block, int which) {
        cuda::pack_block<decltype(in)>(block, shape, given, backward, which, packed);
      });
    });
  }

  template <class T>
  void forward(const cuda::ForwardArgs<T>& args) const {
    if (ahead && cuda::runs_ahead(args.problem.shape.record)) {
      return launch_ahead<T>(args, false, [&](auto in, auto messages, const auto& block, int nodes,
                                              cuda::Arena<T> arena) {
        if (far) {
          cuda::ahead_forward_block<decltype(in), T, messages, true>(block, args, nodes, arena);
        } else {
          cuda::ahead_forward_block<decltype(in), T, messages, false>(block, args, nodes, arena);
        }
      });
    }
    launch<T>(args, false, [&](auto in, const auto& block, int64_t tile, cuda::Arena<T> arena) {
      cuda::forward_block<decltype(in)>(block, args, tile, arena);
    });
  }

  template <class T>
  void backward(const cuda::BackwardArgs<T>& args) const {
    if (ahead && cuda::runs_ahead(args.problem.shape.record)) {
      launch_ahead<T>(args, true, [&](auto in, auto messages, const auto& block, int nodes,
                                      cuda::Arena<T> arena) {
        cuda::ahead_backward_block<decltype(in), T, messages>(block, args, nodes, arena);
      });
    } else {
      launch<T>(args, true, [&](auto in, const auto& block, int64_t tile, cuda::Arena<T> arena) {
        cuda::backward_block<decltype(in)>(block, args, tile, arena);
      });
    }
    // Two blocks for all tiles, so that a block has several.
    std::vector<T> shared(cuda::WeightProducts<T>::kShared, NAN);
    const int64_t size = args.chunks * PackedWeights<T>::size(args.problem.shape.record);
    std::fill(args.partial, args.partial + size, T(NAN));
    each_block(2, [&](const auto& block) { cuda::products_block(block, args, shared.data()); });
    with_element<T>(args.problem.element, [&](auto in) {
      over_weights(args.problem.shape, [&](const auto& block, int which) {
        cuda::gradient_block<decltype(in)>(block, args, which);
      });
    });
  }

  template <class Kernel>
  void each_block(int count, const Kernel& kernel) const {
    for (int b = 0; b < count; ++b) {
      emulation::Threads threads(cuda::kThreads, order);
      threads.run([&] { kernel(emulation::Block{&threads, b, count}); });
    }
  }

  template <class Kernel>
  void over_weights(const Shape& shape, const Kernel& kernel) const {
    for (int which = 0; which < 12 + 4 * shape.messages; ++which) {
      each_block(1, [&](const auto& block) { kernel(block, which); });
    }
  }

  template <class T, class Args, class Kernel>
  void launch_ahead(const Args& args, bool backward, const Kernel& kernel) const {
    const cuda::Problem& problem = args.problem;
    each_block(2, [&](const auto& block) {
      cuda::levels_block<T>(block, problem, args.plan, args.schedule);
    });
    each_block(2, [&](const auto& block) {
      cuda::visits_block<T>(block, problem, args.plan, backward, args.schedule);
    });
    const auto footprint =
        cuda::AheadFootprint<T>::of(problem.shape.record, backward, far && !backward);
    const int64_t size = footprint.bytes(largest_graph) / int64_t(sizeof(T));
    for (int b = 0; b < blocks; ++b) {
      const at::Tensor shared = at::full({size}, empty, c10::CppTypeToScalarType<T>::value);
      emulation::Threads threads(cuda::kThreads, order);
      const cuda::Arena<T> arena{shared.data_ptr<T>(), size};
      with_element<T>(problem.element, [&](auto in) {
        const bool ended = threads.run([&] {
          const emulation::Block block{&threads, b, blocks, barriers[backward]};
          if (problem.shape.messages == 2) {
            kernel(in, std::integral_constant<int, 2>{}, block, int(largest_graph), arena);
          } else {
            kernel(in, std::integral_constant<int, 1>{}, block, int(largest_graph), arena);
          }
        }, barriers[backward] != nullptr);
        if (barriers[backward] != nullptr) barriers[backward]->broken |= !ended;
      });
    }
  }

  template <class T, class Args, class Kernel>
  void launch(const Args& args, bool backward, const Kernel& kernel) const {
    const auto footprint = cuda::choose_tile<T>(args.problem.shape.record, backward, most);
    TORCH_CHECK(footprint.tile > 0, "a node does not fit into shared memory");
    const int64_t size = footprint.bytes(largest_graph, most, sizeof(T)) / int64_t(sizeof(T));
    TORCH_CHECK(size * int64_t(sizeof(T)) <= most);
    for (int b = 0; b < blocks; ++b) {
      const at::Tensor shared = at::full({size}, empty, c10::CppTypeToScalarType<T>::value);
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

GatedGnnArgs args_of(const Case& a, const at::Tensor& plan, int64_t steps) {
  return gated_gnn_args(ours(a.x), ours(plan), ours(a.weights), steps);
}

std::tuple<at::Tensor, at::Tensor> run_forward(const EmulatedLaunches& launches, const Case& a,
                                               const at::Tensor& plan, int64_t steps, bool save) {
  return torchs(
      cuda::run_forward(launches, args_of(a, plan, steps), ours(a.x), ours(plan), steps, save));
}

std::tuple<at::Tensor, std::vector<at::Tensor>> run_backward(const EmulatedLaunches& launches,
                                                             const Case& a, const at::Tensor& plan,
                                                             const at::Tensor& probe,
                                                             const at::Tensor& saved,
                                                             int64_t steps) {
  return torchs(cuda::run_backward(launches, args_of(a, plan, steps), ours(probe), ours(a.x),
                                   ours(plan), ours(saved), steps));
}

Results run(const EmulatedLaunches& launches, const Case& a, const at::Tensor& plan,
            const at::Tensor& probe, int64_t steps) {
  Results found;
  std::tie(found.out, found.saved) = run_forward(launches, a, plan, steps, true);
  std::tie(found.grad_x, found.grad_weights) =
      run_backward(launches, a, plan, probe, found.saved, steps);
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

// Of the CPU op, at double precision.
Results expected_of(const Case& reference, const at::Tensor& plan, const at::Tensor& probe,
                    int64_t steps) {
  Results expected;
  std::tie(expected.out, expected.saved) =
      gated_gnn_forward_cpu(reference.x, plan, reference.weights, steps, true);
  std::tie(expected.grad_x, expected.grad_weights) =
      gated_gnn_backward_cpu(probe.to(at::kDouble), reference.x, plan, reference.weights,
                             expected.saved, steps);
  return expected;
}

double allowed_of(at::ScalarType dtype) {
  return dtype == at::kDouble ? 1e-12 : dtype == at::kFloat ? 2e-5 : 1e-2;
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
  const Results expected = expected_of(reference, plan, probe, size.steps);
  const int64_t largest_graph = *std::max_element(size.graphs.begin(), size.graphs.end());
  const double allowed = allowed_of(dtype);
  char what[200];
  std::snprintf(what, sizeof(what), "%s, hid %ld, hidden %ld, %s virtual edges",
                c10::toString(dtype), long(size.c), long(size.h), virtual_edges ? "with" : "no");
  std::printf("%s\n", what);

  const double of_loop = error(expected.out, loop(reference, size.steps));
  check(of_loop < 1e-12, "the CPU op equals the loop over the nodes");
  EmulatedLaunches roomy{232448, largest_graph};
  roomy.ahead = false;
  const Results found = run(roomy, a, plan, probe, size.steps);
  std::printf("  error %.2g\n", error(found, expected));
  check(error(found, expected) < allowed, "the kernels equal the CPU op");
  const auto without = run_forward(roomy, a, plan, size.steps, false);
  check(at::equal(std::get<0>(without), found.out), "the same bits without a record");
  for (const Order order : {Order::descending, Order::shuffled}) {
    EmulatedLaunches other = roomy;
    other.order = order, other.blocks = 1;
    check(same_bits(run(other, a, plan, probe, size.steps), found),
          "the same bits in another order of threads, and with one block");
  }
  // Just what a tile of one node needs: weights and messages lie in global memory.
  const Record record = args_of(a, plan, size.steps).record;
  const int64_t element = dtype == at::kDouble ? 8 : 4;
  const int64_t least = element * std::max(cuda::Footprint::forward(record, 1, 0).work,
                                           cuda::Footprint::backward(record, 1, 0).work);
  EmulatedLaunches tight = roomy;
  tight.most = least;
  check(error(run(tight, a, plan, probe, size.steps), expected) < allowed,
        "with as little shared memory as can be");
  tight.most = least - 16;
  check(refused([&] { run(tight, a, plan, probe, size.steps); }), "with less it does not start");
}

// The kernels that sum edges ahead.
void test_ahead(const char* what, const Case& exact, at::ScalarType dtype, int64_t steps) {
  const Case a = exact.to(dtype), reference = a.to(at::kDouble);
  const at::Tensor plan = gated_gnn_plan_cpu(a.edges, a.offsets);
  const at::Tensor probe = at::randn_like(exact.x).to(dtype);
  const Results expected = expected_of(reference, plan, probe, steps);
  const GatedGnnArgs args = args_of(a, plan, steps);
  const EmulatedLaunches ahead{232448, at::diff(a.offsets).max().item<int64_t>()};
  const Results found = run(ahead, a, plan, probe, steps);
  std::printf("%s, %s, %d messages: error %.2g\n", what, c10::toString(dtype),
              int(args.messages), error(found, expected));
  check(cuda::runs_ahead(args.record), "there are kernels for these weights");
  check(error(found, expected) < allowed_of(dtype), "edges summed ahead equal the CPU op");
  for (const Order order : {Order::descending, Order::shuffled}) {
    EmulatedLaunches other = ahead;
    other.order = order, other.blocks = 1;
    check(same_bits(run(other, a, plan, probe, steps), found), "the same bits in another order");
    other.far = true;
    check(same_bits(run(other, a, plan, probe, steps), found), "the same bits from far rows");
  }
  if (dtype != at::kDouble && dtype != at::kFloat) return;
  // A record of the CPU op goes into the backward, and one of the forward into the CPU op's.
  const auto [grad_x, grad_weights] =
      run_backward(ahead, a, plan, probe, expected.saved.to(dtype), steps);
  Results mixed{expected.out, expected.saved, grad_x, grad_weights};
  check(error(mixed, expected) < allowed_of(dtype), "from a record of the CPU op");
  std::tie(mixed.grad_x, mixed.grad_weights) = gated_gnn_backward_cpu(
      probe.to(at::kDouble), reference.x, plan, reference.weights, found.saved.to(at::kDouble),
      steps);
  check(error(mixed, expected) < 10 * allowed_of(dtype), "a record for the CPU op");
}

// Graphs of all shapes.
void test_shapes_ahead() {
  typedef std::vector<std::vector<int64_t>> Levels;
  std::mt19937 random(2);
  Levels drawn(3);
  for (auto& widths : drawn) {
    for (int level = 0; level < 12; ++level) {
      widths.push_back(1 + random() % (level % 4 == 3 ? 9 : 3));
    }
  }
  const std::vector<std::pair<const char*, Levels>> shapes = {
      {"one node", {{1}}},
      {"no edges", {{1}, {6}, {}, {11}}},
      {"narrow levels", {{1, 2, 1, 3, 4, 2, 1}}},
      {"wide levels", {{2, 9, 1, 5, 4, 30, 3, 8}}},
      {"levels at random", drawn},
      {"sizes far apart", {{1}, std::vector<int64_t>(60, 1), {}, {3, 1}, {40, 1}}}};
  for (const bool virtual_edges : {true, false}) {
    for (const auto& [what, levels] : shapes) {
      const Case a = layered_case(levels, 40, 32, virtual_edges ? 16 : 32, virtual_edges);
      test_ahead(what, a, at::kDouble, 1);
      test_ahead(what, a, at::kFloat, 2);
    }
    // Widths that padding brings to 32.
    const Case narrow =
        layered_case({{1, 3, 6, 2}}, 50, 24, virtual_edges ? 12 : 24, virtual_edges);
    test_ahead("padded", narrow, at::kDouble, 2);
    test_ahead("padded", narrow, at::kBFloat16, 1);
    test_ahead("padded", narrow, at::kHalf, 1);
  }
  const Case chain = layered_case({std::vector<int64_t>(1000, 1), {2, 1}}, 2, 32, 16, true);
  test_ahead("a chain of 1,000 nodes", chain, at::kDouble, 1);
}

// Levels without nodes, which a plan made by hand may have: nodes behind one are no neighbours in
// time, although their numbers of levels are not one apart either.
void test_empty_levels() {
  const Case a = layered_case({{1, 2, 1, 1, 3, 1}}, 60, 32, 16, true);
  const at::Tensor plan = gated_gnn_plan_cpu(a.edges, a.offsets);
  const at::Tensor probe = at::randn_like(a.x);
  const Results expected = expected_of(a, plan, probe, 1);
  // The bounds of the levels of both sweeps, one more of each.
  const int32_t* const data = plan.const_data_ptr<int32_t>();
  const Plan read = Plan::read(data);
  std::vector<int32_t> made(data, read.sweep[0].node);
  for (int i = 0; i < 2; ++i) {
    const SweepOrder& order = read.sweep[i];
    made.insert(made.end(), order.node, order.node + read.num_nodes);
    made.insert(made.end(), {0, order.num_levels + 1});
    made.insert(made.end(), order.level, order.level + 3);
    made.push_back(order.level[2]);
    made.insert(made.end(), order.level + 3, order.level + order.num_levels + 1);
    ++made[4 + i];
  }
  const at::Tensor longer = at::tensor(made, at::kInt);
  const EmulatedLaunches launches{232448, a.x.size(0)};
  check(error(run(launches, a, longer, probe, 1), expected) < 1e-12, "levels without nodes");
}

// A graph that the host did not know of, as a plan may have while a CUDA graph is captured.
void test_a_graph_too_large() {
  const Case a = layered_case({{1, 1, 2, 1}, {1, 3, 1, 4}}, 60, 32, 16, true).to(at::kFloat);
  const at::Tensor plan = gated_gnn_plan_cpu(a.edges, a.offsets);
  const Results found = run({232448, 5}, a, plan, a.x, 1);
  const Results right = run({232448, 9}, a, plan, a.x, 1);
  check(at::equal(found.out.narrow(0, 0, 5), right.out.narrow(0, 0, 5)), "the others are right");
  check(at::isnan(found.out.narrow(0, 5, 9)).all().item<bool>() &&
            at::isnan(found.grad_x.narrow(0, 5, 9)).all().item<bool>(),
        "a graph too large gives NaN");
}

// Every barrier is needed, and these tests notice if one is missing: with it left out, results
// differ in one of the orders.
void test_each_barrier_is_missed() {
  const Case a =
      layered_case({{1, 2, 1, 6, 1, 1, 3, 9, 2, 1, 1, 1}}, 60, 32, 16, true).to(at::kFloat);
  const at::Tensor plan = gated_gnn_plan_cpu(a.edges, a.offsets);
  const at::Tensor probe = at::randn_like(a.x);
  EmulatedLaunches launches{232448, a.x.size(0), 1};
  emulation::Barriers barriers[2];
  launches.barriers[0] = &barriers[0], launches.barriers[1] = &barriers[1];
  launches.empty = 0;  // an index that is read too early is one, too
  const Results right = run(launches, a, plan, probe, 2);
  for (int backward = 0; backward < 2; ++backward) {
    check(barriers[backward].met.size() >= 6, "barriers are met");
    const std::set<int> lines = barriers[backward].met;
    for (const int line : lines) {
      barriers[backward].left_out = line, barriers[backward].broken = false;
      bool noticed = false;
      for (const Order order : {Order::ascending, Order::descending, Order::shuffled}) {
        launches.order = order;
        barriers[backward].passed = 0;
        const bool same = same_bits(run(launches, a, plan, probe, 2), right);
        noticed = noticed || !same || barriers[backward].broken;
      }
      std::printf("without the barrier in line %d of the %s kernel\n", line,
                  backward ? "backward" : "forward");
      check(noticed, "a barrier that is left out is noticed");
    }
    barriers[backward].left_out = 0;
    barriers[backward].broken = false;
  }
}

// Distances beyond the table of their inverses, and a record that does not begin where four
// elements can be read at a time.
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
  const auto again = run_backward(launches, a, plan, probe, odd, 1);
  check(at::equal(std::get<0>(again), found.grad_x), "the same bits from an odd address");
}

// Whatever a plan's memory holds, the kernels end and stay in bounds, which the sanitizers watch.
void test_wild_plans(int64_t c, int64_t h) {
  const Case a = make_case({6, 4}, c, h, true);
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
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
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
  test_shapes_ahead();
  test_empty_levels();
  test_a_graph_too_large();
  test_each_barrier_is_missed();
  test_wild_plans(5, 3);
  test_wild_plans(32, 16);
  return exit_status();
}
