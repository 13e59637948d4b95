// The forward kernel that sums edges ahead: the code of one block, which walks the levels of its
// graph. What gated_gnn_forward.h does, and the same record; see gated_gnn_ahead.h for the roles of
// the warps.
#pragma once

#include "gated_gnn_ahead.h"

namespace ghn::cuda {

// Shared memory of the forward kernel. What a step leaves for the next one is there twice, and they
// take turns.
template <class T, int kMessages>
struct AheadForwardMemory {
  static constexpr int kPartial = kUpdaters * kWorkers * kWide, kHeld = kUpdaters * 4 * kWide;

  T* partials;            // (2, kUpdaters, kWorkers, kWide), sums of edges
  T* helds;               // (2, kUpdaters, 4, kWide), what the state adds to r z n; the state
  T* swap;                // (kUpdaters, 3, kWide), what threads of a warp tell each other
  T *ih_b, *hh_b;         // (3, kWide)
  T *first_b, *second_b;  // (kWide), (kMessages, kWide)

  GHN_DEVICE explicit AheadForwardMemory(Arena<T>& arena) {
    partials = arena.need(2 * kPartial);
    helds = arena.need(2 * kHeld);
    swap = arena.need(kUpdaters * 3 * kWide);
    ih_b = arena.need(3 * kWide);
    hh_b = arena.need(3 * kWide);
    first_b = arena.need(kWide);
    second_b = arena.need(kMessages * kWide);
  }

  GHN_DEVICE T* partial(int turn) const { return partials + turn * kPartial; }
  GHN_DEVICE T* held(int turn) const { return helds + turn * kHeld; }
};

template <class T, int kMessages, bool kFar, class Block>
struct AheadForward {
  typedef NodeUpdate<T, 1, GateFunctions<T>> Update;
  // Addresses of global memory take two registers.
  typedef EdgeShare<T, 1, kFar ? 6 : 8> Sums;

  const Block& block;
  const AheadForwardMemory<T, kMessages>& memory;
  const ThreadWeights<T>& w;
  SweepTable<T> table;
  const Edge<T>* edges;
  T* rows;  // (n, kMessages, kWide): the sum of both messages, the second; or the only one
  int n;
  Fields<T> f;  // of the graph
  const T* before;

  GHN_DEVICE int lane() const { return block.thread() % kWarp; }
  GHN_DEVICE AheadRows<T> readable() const { return {rows, unsigned(n * kMessages - 1)}; }

  // The k-th node of a step, by one warp: message, gates, state, hidden layers, what is sent. What
  // is waited for comes first, and what is only kept where there is time; read_on() reads from
  // memory what the next step needs, in the place of `late`.
  template <class ReadOn>
  GHN_DEVICE void update(const Step& step, int k, int turn, const LateEdges<T>& late,
                         const ReadOn& read_on) const {
    const unsigned j = lane(), v = table.visit[step.begin + k].node;
    T* const swap = memory.swap + k * 3 * kWide;
    const T* const held = memory.held(turn) + k * 4 * kWide + j;
    const T early = Sums::total(memory.partial(turn), step, k, 0, j);
    T message = T(0);
    late.each(edges, readable(), j, [&](T weight, T value) { message += weight * value; });
    message += early;
    swap[j] = message;
    block.sync_warp();
    read_on();
    T sum[3] = {memory.ih_b[j], memory.ih_b[kWide + j], memory.ih_b[2 * kWide + j]};
    products_of_gates<0>(w.gate, swap, sum);
    const auto u = Update::gru(sum[0], sum[1], sum[2], held[0], held[kWide], held[2 * kWide],
                               held[3 * kWide]);
    swap[kWide + j] = u.out;
    block.sync_warp();
    T* const gate = f.gates + v * 4 * kWide + j;
    gate[0] = u.r, gate[kWide] = u.z, gate[3 * kWide] = u.n;
    f.message[v * kWide + j] = message;
    f.state[v * kWide + j] = u.out;
    const T hidden = Update::relu(
        product_in_chains<4, 0, kWide>(w.first, swap + kWide, memory.first_b[j]));
    swap[2 * kWide + j] = hidden;
    block.sync_warp();
    f.hidden[v * kWide + j] = hidden;
    const T* const layer = swap + 2 * kWide;
    T* const sent = f.sent + v * kMessages * kWide + j;
    if constexpr (kMessages == 2) {
      const T near = Update::relu(
          product_in_chains<2, 0, kWide / 2>(w.second, layer, memory.second_b[j]));
      const T far = Update::relu(product_in_chains<2, kWide / 2, kWide / 2>(
          w.second, layer + kWide / 2, memory.second_b[kWide + j]));
      rows[v * 2 * kWide + j] = near + far;
      rows[v * 2 * kWide + kWide + j] = far;
      sent[0] = near, sent[kWide] = far;
    } else {
      sent[0] = rows[v * kWide + j] =
          Update::relu(product_in_chains<4, 0, kWide>(w.second, layer, memory.second_b[j]));
    }
  }

  // What the states before the sweep add to the gates of the nodes of a step, by one warp.
  GHN_DEVICE void multiply_states(const Step& step, int turn) const {
    const int j = lane();
    T state[kUpdaters];
    GHN_UNROLL
    for (int k = 0; k < kUpdaters; ++k) {
      if (k < step.count) state[k] = before[table.visit[step.begin + k].node * kWide + j];
    }
    GHN_UNROLL
    for (int k = 0; k < kUpdaters; ++k) {
      if (k < step.count) memory.held(turn)[(k * 4 + 3) * kWide + j] = state[k];
    }
    block.sync_warp();
    for (int k = 0; k < step.count; ++k) {
      T* const held = memory.held(turn) + k * 4 * kWide;
      T sum[3] = {memory.hh_b[j], memory.hh_b[kWide + j], memory.hh_b[2 * kWide + j]};
      products_of_gates<0>(w.gate, held + 3 * kWide, sum);
      held[j] = sum[0], held[kWide + j] = sum[1], held[2 * kWide + j] = sum[2];
      f.gates[(table.visit[step.begin + k].node * 4 + 2) * kWide + j] = sum[2];
    }
  }

  // Ends with a barrier.
  GHN_DEVICE void sweep() const {
    const int warp = block.thread() / kWarp;
    Steps steps(table.level, table.levels, false);
    Step now{0, 0, 1, Step::complete}, next = steps.next();
    LateEdges<T> own{};
    for (int turn = 0;; turn ^= 1) {
      const auto read_on = [&] {
        const bool there = warp < next.count;
        const Visit visit = table.visit[there ? next.begin + warp : 0];
        own = LateEdges<T>::read(edges, visit, next, there);
      };
      if (warp < now.count) {
        update(now, warp, turn, own, read_on);
      } else if (warp < kWorkers) {
        read_on();
        Sums::step(block, edges, readable(), table.visit, next, warp - now.count,
                   kWorkers - now.count, memory.partial(turn ^ 1));
      } else {
        const Step found = steps.next();
        table.publish(block, found, turn, edges);
        if (lane() < found.count) {
          block.touch(before + table.visit[found.begin + lane()].node * kWide);
        }
        multiply_states(next, turn ^ 1);
      }
      block.sync();
      if (next.kind == Step::last) return;
      now = next;
      next = table.step[turn];
    }
  }
};

// A graph of more than `most_nodes` nodes is none that the host knows of: its rows are NaN. What
// edges are summed over is in shared memory, or kFar in global memory, where what has just been
// written is further away.
template <class In, class T, int kMessages, bool kFar, class Block>
GHN_DEVICE void ahead_forward_block(const Block& block, const ForwardArgs<T>& args, int most_nodes,
                                    Arena<T> arena) {
  const Problem& problem = args.problem;
  const int64_t channels = problem.shape.channels, N = problem.num_nodes;
  const SafePlan safe = SafePlan::read(args.plan, problem);
  if (!safe.fits) return fill_nan<In, T>(block, args.out, N * channels);
  Record r = problem.shape.record;
  r.c = r.hidden = kWide, r.messages = kMessages;
  const Schedule<T> schedule = Schedule<T>::at(args.schedule, problem);
  const AheadForwardMemory<T, kMessages> memory(arena);
  SweepTable<T> table(arena, most_nodes, kFar ? 0 : kMessages * kWide);

  const PackedWeights<T> packed = PackedWeights<T>::at(const_cast<T*>(args.packed), r);
  const int lane = block.thread() % kWarp, warp = block.thread() / kWarp;
  ThreadWeights<T> w;
  const T* const gates = warp == kWorkers ? packed.hh : packed.ih;
  GHN_UNROLL
  for (int i = 0; i < kWide; ++i) {
    GHN_UNROLL
    for (int g = 0; g < 3; ++g) w.gate[g][i] = gates[(i * 3 + g) * kWide + lane];
    w.first[i] = packed.first[i * kWide + lane];
    constexpr int kHidden = kWide / kMessages;  // of a perceptron
    w.second[i] = i < kHidden ? packed.second[0][i * kWide + lane]
                              : packed.second[1][(i - kHidden) * kWide + lane];
  }
  if (warp < 3) {
    memory.ih_b[warp * kWide + lane] = packed.ih_b[warp * kWide + lane];
    memory.hh_b[warp * kWide + lane] = packed.hh_b[warp * kWide + lane];
  } else if (warp == 3) {
    memory.first_b[lane] = packed.first_b[lane];
  } else if (warp < 4 + kMessages) {
    memory.second_b[(warp - 4) * kWide + lane] =
        (warp == 4 ? packed.second_b[0] : packed.second_b[1])[lane];
  }

  for (int64_t g = block.index(); g < safe.plan.num_graphs; g += block.count()) {
    const SafePlan::Range nodes = safe.nodes(g);
    const int64_t first = nodes.begin, n = nodes.end - nodes.begin;
    if (n > most_nodes) {
      fill_nan_rows<In, T>(block, args.out, channels, first, n);
      continue;
    }
    if (n == 0) continue;
    load_rows<In>(block, args.x, channels, args.start, int64_t(kWide), first, n);
    const T* before = args.start + first * kWide;
    T* const rows = kFar ? schedule.row + first * kMessages * kWide : table.row;
    for (int sweep = 0; sweep < problem.sweeps; ++sweep) {
      const int direction = sweep % 2;
      table.fill(block, safe, safe.order(sweep), g, nodes, schedule,
                 schedule.visit + direction * N);
      block.sync();
      const Fields<T> f = Fields<T>::at(
          args.record + int64_t(sweep % args.records) * N * r.width, r, N, first);
      const AheadForward<T, kMessages, kFar, Block> walk{
          block, memory, w, table, schedule.edge + direction * schedule.most_edges, rows, int(n), f,
          before};
      walk.sweep();
      before = f.state;
    }
    store_rows<In>(block, args.out, channels, before - first * kWide, int64_t(kWide), first, n);
  }
}

}  // namespace ghn::cuda
