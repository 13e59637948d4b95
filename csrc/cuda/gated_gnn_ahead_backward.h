// The backward kernel that sums edges ahead: the code of one block, which walks the levels of its
// graph from the last one of the last sweep. What gated_gnn_backward.h does, with the same record
// and the same factors; see gated_gnn_ahead.h for the roles of the warps.
#pragma once

#include "gated_gnn_ahead.h"

namespace ghn::cuda {

// Shared memory of the backward kernel. What a step leaves for the next one is there twice, and
// they take turns.
template <class T, int kMessages>
struct AheadBackwardMemory {
  // Between what both halves of a warp read at a time, so that they use different banks.
  static constexpr int kFar = kWide + kWide / 2;

  static constexpr int kPartial = kUpdaters * kWorkers * kMessages * kWide;
  static constexpr int kGates = kUpdaters * 5 * kWide;

  T* partials;    // (2, kUpdaters, kWorkers, kMessages, kWide), sums of edges
  T* gradients;   // (2, kUpdaters, 5, kWide), of n r z hn, and that of the state by itself
  T* swap;        // (kUpdaters, 4, kWide), what threads of a warp tell each other

  GHN_DEVICE explicit AheadBackwardMemory(Arena<T>& arena) {
    partials = arena.need(2 * kPartial);
    gradients = arena.need(2 * kGates);
    swap = arena.need(kUpdaters * 4 * kWide);
  }

  GHN_DEVICE T* partial(int turn) const { return partials + turn * kPartial; }
  GHN_DEVICE T* gates(int turn) const { return gradients + turn * kGates; }
};

// One element of what forward left of a node, and of the gradient of its state.
template <class T>
struct HeldElement {
  T r, z, hn, n, before, d_state, hidden, near, far;
};

template <class T, int kMessages, class Block>
struct AheadBackward {
  typedef NodeUpdate<T, 1> Update;
  typedef EdgeShare<T, kMessages> Sums;
  typedef AheadBackwardMemory<T, kMessages> Memory;

  const Block& block;
  const Memory& memory;
  const ThreadWeights<T>& w;
  SweepTable<T> table;
  const Edge<T>* edges;
  T* rows;  // (n, kWide), gradients of the messages that nodes received
  int n;
  Fields<T> f;  // of the graph
  Factors<T> d;
  const T* before;
  T* d_state;

  GHN_DEVICE int lane() const { return block.thread() % kWarp; }
  GHN_DEVICE AheadRows<T> readable() const { return {rows, unsigned(n - 1)}; }

  GHN_DEVICE HeldElement<T> hold(unsigned v) const {
    const unsigned j = lane();
    const T* const gate = f.gates + v * 4 * kWide + j;
    const T* const sent = f.sent + v * kMessages * kWide + j;
    return {gate[0], gate[kWide], gate[2 * kWide], gate[3 * kWide], before[v * kWide + j],
            d_state[v * kWide + j], f.hidden[v * kWide + j], sent[0],
            kMessages == 2 ? sent[(kMessages - 1) * kWide] : T(0)};
  }

  // What hold() reads of a node, one of nine lines of the cache.
  GHN_DEVICE const T* line(unsigned v, unsigned which) const {
    if (which < 4) return f.gates + (v * 4 + which) * kWide;
    if (which < 6) return f.sent + v * kMessages * kWide + (which - 4) * (kMessages - 1) * kWide;
    const T* const rows = which == 6 ? f.hidden : which == 7 ? before : d_state;
    return rows + v * kWide;
  }

  // The k-th node of a step, by one warp: what is sent, hidden layers, gates, message. What is
  // waited for comes first, and what is only kept where there is time; read_on() reads from memory
  // what the next step needs.
  template <class ReadOn>
  GHN_DEVICE void update(const Step& step, int k, int turn, const LateEdges<T>& late,
                         const HeldElement<T>& own, const ReadOn& read_on) const {
    const unsigned j = lane(), v = table.visit[step.begin + k].node;
    T* const swap = memory.swap + k * 4 * kWide;
    const T early = Sums::total(memory.partial(turn), step, k, 0, j);
    const T early_near =
        kMessages == 2 ? Sums::total(memory.partial(turn), step, k, kMessages - 1, j) : T(0);
    T both = T(0), near = T(0);
    late.each(edges, readable(), j, [&](T weight, T value) {
      both += weight * value;
      if (kMessages == 2) near += weight == T(1) ? value : T(0);
    });
    both += early;
    near = kMessages == 2 ? near + early_near : both;
    const T d_near = Update::relu_backward(near, own.near);
    const T d_far = Update::relu_backward(both, own.far);
    swap[j] = d_near;
    if (kMessages == 2) swap[Memory::kFar + j] = d_far;
    block.sync_warp();
    read_on();
    T* const sent_to = d.sent + v * kMessages * kWide + j;
    sent_to[0] = d_near;
    if (kMessages == 2) sent_to[(kMessages - 1) * kWide] = d_far;
    // The second half of the hidden elements is that of the second perceptron.
    const T* const sent = swap + (kMessages == 2 && j >= kWide / 2 ? Memory::kFar : 0);
    const T d_hidden = Update::relu_backward(
        product_in_chains<4, 0, kWide>(w.second, sent, T(0)), own.hidden);
    T* const layer = swap + 3 * kWide;
    layer[j] = d_hidden;
    block.sync_warp();
    d.hidden[v * kWide + j] = d_hidden;
    const T grad = product_in_chains<4, 0, kWide>(w.first, layer, own.d_state);
    const auto u = Update::gru_backward(grad, own.before, own.r, own.z, own.n, own.hn);
    T* const gates = memory.gates(turn) + k * 5 * kWide;
    gates[j] = u.n, gates[kWide + j] = u.r, gates[2 * kWide + j] = u.z;
    gates[3 * kWide + j] = u.hn, gates[4 * kWide + j] = u.h;
    block.sync_warp();
    T* const to = d.gates + v * 4 * kWide + j;
    to[0] = u.n, to[kWide] = u.r, to[2 * kWide] = u.z, to[3 * kWide] = u.hn;
    T sum[3] = {T(0), T(0), T(0)};
    products_of_gates<kWide>(w.gate, gates, sum);
    rows[v * kWide + j] = sum[0] + sum[1] + sum[2];
  }

  // The gradients of the states before the sweep, for the nodes of a step that has been, by one
  // warp.
  GHN_DEVICE void multiply_gates(const Step& step, int turn) const {
    const int j = lane();
    for (int k = 0; k < step.count; ++k) {
      const T* const gates = memory.gates(turn) + k * 5 * kWide;
      T sum[3] = {gates[4 * kWide + j], T(0), T(0)};
      products_of_gates<kWide>(w.gate, gates + kWide, sum);
      d_state[table.visit[step.begin + k].node * kWide + j] = sum[0] + sum[1] + sum[2];
    }
  }

  GHN_DEVICE void sweep() const {
    const int warp = block.thread() / kWarp;
    Steps steps(table.level, table.levels, true);
    Step been{0, 0, 1, Step::complete}, now = been, next = steps.next();
    LateEdges<T> own{}, coming{};
    HeldElement<T> held{}, coming_held{};
    int turn = 0;
    for (;; turn ^= 1) {
      const auto read_on = [&] {
        const bool there = warp < next.count;
        const Visit visit = table.visit[there ? next.begin + warp : 0];
        coming = LateEdges<T>::read(edges, visit, next, there);
        if (there) coming_held = hold(visit.node);
      };
      if (warp < now.count) {
        update(now, warp, turn, own, held, read_on);
      } else if (warp < kWorkers) {
        read_on();
        Sums::step(block, edges, readable(), table.visit, next, warp - now.count,
                   kWorkers - now.count, memory.partial(turn ^ 1));
      } else {
        const Step found = steps.next();
        table.publish(block, found, turn, edges);
        for (int k = 0; k < found.count; ++k) {
          if (lane() < 9) block.touch(line(table.visit[found.begin + k].node, lane()));
        }
        multiply_gates(been, turn ^ 1);
      }
      block.sync();
      if (next.kind == Step::last) break;
      been = now, now = next;
      next = table.step[turn];
      own = coming, held = coming_held;
    }
    if (warp == kWorkers) multiply_gates(now, turn);
  }
};

// A graph of more than `most_nodes` nodes is none that the host knows of: its rows are NaN.
template <class In, class T, int kMessages, class Block>
GHN_DEVICE void ahead_backward_block(const Block& block, const BackwardArgs<T>& args,
                                     int most_nodes, Arena<T> arena) {
  const Problem& problem = args.problem;
  const int64_t channels = problem.shape.channels, N = problem.num_nodes;
  const SafePlan safe = SafePlan::read(args.plan, problem);
  if (!safe.fits) return fill_nan<In, T>(block, args.grad_x, N * channels);
  Record r = problem.shape.record;
  r.c = r.hidden = kWide, r.messages = kMessages;
  const Schedule<T> schedule = Schedule<T>::at(args.schedule, problem);
  const AheadBackwardMemory<T, kMessages> memory(arena);
  SweepTable<T> table(arena, most_nodes, kWide);

  const PackedWeights<T> packed = PackedWeights<T>::at(const_cast<T*>(args.packed), r);
  const int lane = block.thread() % kWarp, warp = block.thread() / kWarp;
  ThreadWeights<T> w;
  const T* const gates = warp == kWorkers ? packed.hh : packed.ih;
  constexpr int kHidden = kWide / kMessages;
  const int k = kMessages == 2 && lane >= kHidden ? 1 : 0;
  GHN_UNROLL
  for (int i = 0; i < kWide; ++i) {
    GHN_UNROLL
    for (int g = 0; g < 3; ++g) w.gate[g][i] = gates[(g * kWide + i) * kWide + lane];
    w.first[i] = packed.first[i * kWide + lane];
    w.second[i] = (k == 0 ? packed.second[0] : packed.second[1])[i * kHidden + lane - k * kHidden];
  }

  for (int64_t g = block.index(); g < safe.plan.num_graphs; g += block.count()) {
    const SafePlan::Range nodes = safe.nodes(g);
    const int64_t first = nodes.begin, n = nodes.end - nodes.begin;
    if (n > most_nodes) {
      fill_nan_rows<In, T>(block, args.grad_x, channels, first, n);
      continue;
    }
    if (n == 0) continue;
    T* const d_state = args.d_state + first * kWide;
    load_rows<In>(block, args.x, channels, args.start, int64_t(kWide), first, n);
    load_rows<In>(block, args.grad, channels, args.d_state, int64_t(kWide), first, n);
    for (int sweep = problem.sweeps - 1; sweep >= 0; --sweep) {
      const int direction = sweep % 2;
      block.sync();
      table.fill(block, safe, safe.order(sweep), g, nodes, schedule,
                 schedule.visit + direction * N);
      block.sync();
      T* const record = const_cast<T*>(args.record) + int64_t(sweep) * N * r.width;
      const Fields<T> f = Fields<T>::at(record, r, N, first);
      const AheadBackward<T, kMessages, Block> walk{
          block, memory, w, table, schedule.edge + direction * schedule.most_edges, table.row,
          int(n), f,
          Factors<T>::at(args.factors + int64_t(sweep) * N * Factors<T>::width(r), r, N, first),
          sweep > 0 ? f.state - N * r.width : args.start + first * kWide, d_state};
      walk.sweep();
    }
    block.sync();
    store_rows<In>(block, args.grad_x, channels, args.d_state, int64_t(kWide), first, n);
  }
}

}  // namespace ghn::cuda
