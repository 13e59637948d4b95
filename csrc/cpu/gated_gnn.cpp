// The gated GNN on CPU: graphs, or the levels of a single one, over the threads.
//
// A thread takes whole graphs where there are several; the nodes of a wide level are spread where
// there is one. Each node adds its incoming messages, and each weight its contributions, in an
// order that the plan alone fixes, so that results do not depend on the number of threads.

#include <numeric>
#include <tuple>

#include "../common/checks.h"
#include "../common/parallel.h"
#include "../common/torch_call.h"
#include "../plan/gated_gnn_plan_check.h"
#include "gated_gnn_kernels.h"
#include "gated_gnn_pack.h"

namespace ghn {
namespace {

// Nodes of a level that make a task worth handing to another thread.
constexpr int64_t kNodesPerTask = 16;

// A plan whose numbers are sound at this moment: see plan/gated_gnn_plan_check.h.
Plan checked_plan(const Tensor& packed, int64_t num_nodes) {
  check_plan_nodes(known_plan(packed), num_nodes);
  return Plan::read(packed.const_data_ptr<int32_t>());
}

template <class T>
std::vector<T> inverse_distances(const Plan& plan) {
  std::vector<T> inverse(plan.max_distance + 1, T(0));
  for (size_t d = 1; d < inverse.size(); ++d) inverse[d] = T(1) / T(d);
  return inverse;
}

// What all graphs and sweeps of a call share.
template <class T>
struct Call {
  const GatedGnnArgs& args;
  const Plan& plan;
  const PackedWeights<T>& weights;
  const std::vector<T>& inverse;
  Kernels<T> kernels;
  int64_t sweeps;

  Walk<T> walk(int64_t graph, int64_t sweep) const {
    const int direction = int(sweep % 2);
    const int64_t first = plan.graph_ptr[graph];
    Walk<T> w{};
    w.record = args.record;
    w.channels = args.channels;
    w.hidden[0] = args.hidden[0], w.hidden[1] = args.hidden[1];
    w.weights = weights;
    w.inverse = inverse.data();
    w.num_nodes = plan.graph_ptr[graph + 1] - first;
    w.gather = direction == 0 ? &plan.in : &plan.out;
    w.scatter = direction == 0 ? &plan.out : &plan.in;
    w.gather_ptr = w.gather->ptr + first, w.gather_split = w.gather->split + first;
    w.scatter_ptr = w.scatter->ptr + first, w.scatter_split = w.scatter->split + first;
    w.order = plan.sweep[direction].node + first;
    return w;
  }

  // Bounds of the levels of a graph, as places in its order.
  const int32_t* levels(int64_t graph, int64_t sweep, int64_t& count) const {
    const SweepOrder& order = plan.sweep[sweep % 2];
    count = order.graph_level[graph + 1] - order.graph_level[graph];
    return order.level + order.graph_level[graph];
  }
};

// Run task(begin, end) over [0, count): spread over threads if `spread`, at once otherwise.
template <class Task>
void over_nodes(bool spread, int64_t count, const Task& task) {
  if (spread && count >= 2 * kNodesPerTask) {
    // Tiles begin at multiples of the task's size, whatever the number of threads.
    const int64_t tasks = (count + kNodesPerTask - 1) / kNodesPerTask;
    parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
      task(begin * kNodesPerTask, std::min(end * kNodesPerTask, count));
    });
  } else if (count > 0) {
    task(0, count);
  }
}

// Run task(graph, spread) for all graphs: the largest first, each to the thread with least to do.
template <class Task>
void over_graphs(const Plan& plan, const Task& task) {
  const int64_t graphs = plan.num_graphs;
  const int64_t threads = num_threads();
  const int64_t bins = std::min<int64_t>(threads, graphs);
  if (bins < 2) {
    for (int64_t g = 0; g < graphs; ++g) task(g, threads > 1);
    return;
  }
  std::vector<int64_t> cost(graphs), order(graphs), load(bins, 0);
  for (int64_t g = 0; g < graphs; ++g) {
    const int64_t first = plan.graph_ptr[g], last = plan.graph_ptr[g + 1];
    // A node costs about as much as sixty-four edges.
    cost[g] = 64 * (last - first) + plan.in.ptr[last] - plan.in.ptr[first];
  }
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return cost[a] > cost[b]; });
  std::vector<std::vector<int64_t>> share(bins);
  for (const int64_t g : order) {
    const auto least = std::min_element(load.begin(), load.end()) - load.begin();
    share[least].push_back(g);
    load[least] += cost[g];
  }
  parallel_for(0, bins, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      for (const int64_t g : share[b]) task(g, false);
    }
  });
}

template <class T>
void copy_rows(T* to, int64_t to_width, const T* from, int64_t from_width, int64_t rows) {
  const int64_t width = std::min(to_width, from_width);
  for (int64_t r = 0; r < rows; ++r) {
    std::copy(from + r * from_width, from + r * from_width + width, to + r * to_width);
    std::fill(to + r * to_width + width, to + (r + 1) * to_width, T(0));
  }
}

template <class T>
void forward_sweep(const Call<T>& call, const Walk<T>& walk, int64_t graph, int64_t sweep,
                   bool spread) {
  const Kernels<T>& kernels = call.kernels;
  over_nodes(spread, walk.num_nodes,
             [&](int64_t begin, int64_t end) { kernels.prepare(walk, begin, end); });
  int64_t count = 0;
  const int32_t* level = call.levels(graph, sweep, count);
  for (int64_t l = 0; l < count; ++l) {
    const int64_t first = level[l] - level[0];
    over_nodes(spread, level[l + 1] - level[l], [&](int64_t begin, int64_t end) {
      kernels.visit(walk, first + begin, first + end);
    });
  }
}

template <class T>
void forward_graph(const Call<T>& call, const T* x, T* out, T* saved, int64_t graph, bool spread) {
  const Record& r = call.args.record;
  const int64_t first = call.plan.graph_ptr[graph], n = call.plan.graph_ptr[graph + 1] - first;
  const int64_t c = call.args.channels;
  // Without `saved` one record serves all sweeps, and the states take turns.
  Buffer<T> scratch(n * (saved ? r.c : r.width + 2 * r.c));
  T* const start = scratch.get();
  copy_rows(start, r.c, x + first * c, c, n);
  const T* state = start;
  for (int64_t sweep = 0; sweep < call.sweeps; ++sweep) {
    Walk<T> walk = call.walk(graph, sweep);
    if (saved) {
      const int64_t rows = call.plan.num_nodes;
      walk.fields = Fields<T>::at(saved + sweep * rows * r.width, r, rows, first);
    } else {
      walk.fields = Fields<T>::at(start + 2 * n * r.c, r, n, 0);
      walk.fields.state = start + (1 - sweep % 2) * n * r.c;
    }
    walk.state = state;
    forward_sweep(call, walk, graph, sweep, spread);
    state = walk.fields.state;
  }
  copy_rows(out + first * c, c, state, r.c, n);
}

template <class T>
void add_weight_gradients(const Call<T>& call, const Walk<T>& walk, const PackedWeights<T>& sums,
                          bool spread) {
  const Record& r = walk.record;
  const int64_t c = r.c, n = walk.num_nodes;
  struct Product {
    T *out, *bias;
    const T* a;
    int64_t a_width;
    const T* b;
    int64_t b_width, outputs, columns;
  };
  const Fields<T>& f = walk.fields;
  std::vector<Product> products = {
      {sums.ih, sums.ih_b, walk.d.gates, 4 * c, f.message, c, 3 * c, c},
      {sums.hh, sums.hh_b, walk.d.gates + c, 4 * c, walk.state, c, 3 * c, c},
      {sums.first, sums.first_b, walk.d.hidden, r.hidden, f.state, c, r.hidden, c}};
  for (int64_t k = 0; k < r.messages; ++k) {
    products.push_back({sums.second[k], sums.second_b[k], walk.d.sent + k * c, r.messages * c,
                        f.hidden + (k == 0 ? 0 : r.h[0]), r.hidden, c, r.h[k]});
  }
  for (const Product& p : products) {
    auto run = [&](int64_t begin, int64_t end) {
      call.kernels.outer(p.out + begin * p.columns, p.bias + begin, p.a + begin, p.a_width, p.b,
                         p.b_width, n, end - begin, p.columns);
    };
    over_nodes(spread && n >= 64, p.outputs, run);
  }
}

template <class T>
void backward_graph(const Call<T>& call, const T* grad, const T* x, const T* saved, T* grad_x,
                    T* partial, int64_t graph, bool spread) {
  const Record& r = call.args.record;
  const int64_t rows = call.plan.num_nodes, c = call.args.channels;
  const int64_t first = call.plan.graph_ptr[graph], n = call.plan.graph_ptr[graph + 1] - first;
  const PackedWeights<T> sums = PackedWeights<T>::at(partial, r);
  std::fill(partial, partial + PackedWeights<T>::size(r), T(0));
  Buffer<T> scratch(n * (3 * r.c + Factors<T>::width(r)));
  T* const start = scratch.get();
  T* const d_state = start + n * r.c;
  copy_rows(start, r.c, x + first * c, c, n);
  copy_rows(d_state, r.c, grad + first * c, c, n);
  // The forward wrote `saved`, the backward reads it only.
  T* const record = const_cast<T*>(saved);
  for (int64_t sweep = call.sweeps - 1; sweep >= 0; --sweep) {
    Walk<T> walk = call.walk(graph, sweep);
    walk.fields = Fields<T>::at(record + sweep * rows * r.width, r, rows, first);
    walk.state = sweep == 0 ? start : record + (sweep - 1) * rows * r.width + first * r.c;
    walk.d_state = d_state;
    walk.d_message = d_state + n * r.c;
    walk.d = Factors<T>::at(walk.d_message + n * r.c, r, n, 0);
    int64_t count = 0;
    const int32_t* level = call.levels(graph, sweep, count);
    for (int64_t l = count - 1; l >= 0; --l) {
      const int64_t place = level[l] - level[0];
      over_nodes(spread, level[l + 1] - level[l], [&](int64_t begin, int64_t end) {
        call.kernels.visit_backward(walk, place + begin, place + end);
      });
    }
    over_nodes(spread, n, [&](int64_t begin, int64_t end) {
      call.kernels.finish_backward(walk, begin, end);
    });
    add_weight_gradients(call, walk, sums, spread);
  }
  copy_rows(grad_x + first * c, c, d_state, r.c, n);
}

template <class T>
void forward(const GatedGnnArgs& args, const Plan& plan, const Tensor& x, Tensor& out,
             Tensor& saved, int64_t sweeps) {
  const WeightMemory<T> weights(args, false);
  const std::vector<T> inverse = inverse_distances<T>(plan);
  const Call<T> call{args, plan, weights.get(), inverse, kernels<T>(), sweeps};
  const T* from = x.const_data_ptr<T>();
  T* to = out.data_ptr<T>();
  T* keep = saved.numel() > 0 ? saved.data_ptr<T>() : nullptr;
  over_graphs(plan, [&](int64_t graph, bool spread) {
    forward_graph(call, from, to, keep, graph, spread);
  });
}

template <class T>
std::vector<Tensor> backward(const GatedGnnArgs& args, const Plan& plan, const Tensor& grad,
                             const Tensor& x, const Tensor& saved, Tensor& grad_x, int64_t sweeps) {
  const WeightMemory<T> weights(args, true);
  const std::vector<T> inverse = inverse_distances<T>(plan);
  const Call<T> call{args, plan, weights.get(), inverse, kernels<T>(), sweeps};
  const int64_t size = PackedWeights<T>::size(args.record);
  Buffer<T> partial((plan.num_graphs + 1) * size);
  T* const total = partial.get();
  std::fill(total, total + size, T(0));
  over_graphs(plan, [&](int64_t graph, bool spread) {
    backward_graph(call, grad.const_data_ptr<T>(), x.const_data_ptr<T>(),
                   saved.const_data_ptr<T>(), grad_x.data_ptr<T>(), total + (graph + 1) * size,
                   graph, spread);
  });
  for (int64_t g = 1; g <= plan.num_graphs; ++g) {
    for (int64_t i = 0; i < size; ++i) total[i] += total[g * size + i];
  }
  return unpack_weight_sums(PackedWeights<T>::at(total, args.record), args);
}

// The kernels compute in float32 or float64.
GatedGnnArgs in_compute_dtype(GatedGnnArgs args) {
  for (Tensor& weight : args.weights) weight = weight.to(args.compute);
  return args;
}

}  // namespace

std::tuple<Tensor, Tensor> gated_gnn_forward_cpu(const Tensor& x, const Tensor& packed,
                                                 TensorList weights, int64_t steps, bool save) {
  const GatedGnnArgs args = in_compute_dtype(gated_gnn_args(x, packed, weights, steps));
  const Plan plan = checked_plan(packed, args.num_nodes);
  const Tensor rows = x.to(args.compute).contiguous();
  Tensor out = empty_like(rows);
  Tensor saved = save ? empty({2 * steps, args.num_nodes, args.record.width}, rows.options())
                      : empty({0}, rows.options());
  if (rows.numel() == 0) return {empty_like(x), saved};
  if (args.compute == kFloat) {
    forward<float>(args, plan, rows, out, saved, 2 * steps);
  } else {
    forward<double>(args, plan, rows, out, saved, 2 * steps);
  }
  return {out.to(x.scalar_type()), saved};
}

std::tuple<Tensor, std::vector<Tensor>> gated_gnn_backward_cpu(const Tensor& grad, const Tensor& x,
                                                               const Tensor& packed,
                                                               TensorList weights,
                                                               const Tensor& saved, int64_t steps) {
  const GatedGnnArgs args = in_compute_dtype(gated_gnn_args(x, packed, weights, steps));
  check_backward_args(args, grad, x, saved, steps);
  const Plan plan = checked_plan(packed, args.num_nodes);
  const Tensor d = grad.to(args.compute).contiguous(), rows = x.to(args.compute).contiguous();
  const Tensor record = saved.contiguous();
  Tensor grad_x = empty_like(rows);
  std::vector<Tensor> grad_weights =
      args.compute == kFloat ? backward<float>(args, plan, d, rows, record, grad_x, 2 * steps)
                             : backward<double>(args, plan, d, rows, record, grad_x, 2 * steps);
  for (Tensor& grad_weight : grad_weights) grad_weight = grad_weight.to(x.scalar_type());
  return {grad_x.to(x.scalar_type()), grad_weights};
}

STABLE_TORCH_LIBRARY_IMPL(ghn_fast, CPU, m) {
  m.impl("gated_gnn_forward", boxed<&gated_gnn_forward_cpu>);
  m.impl("gated_gnn_backward", boxed<&gated_gnn_backward_cpu>);
}

}  // namespace ghn
