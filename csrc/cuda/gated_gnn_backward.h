// The backward kernel of the gated GNN: the code of one block, which walks the levels of its graph
// from the last one of the last sweep.
//
// Per tile of nodes of a level, and with a barrier after each: gather the gradients of the messages
// that were sent; the hidden layers; the gates; the gradient of the message that was received. What
// the weights need of it stays in `factors`.
#pragma once

#include "gated_gnn_block.h"

namespace ghn::cuda {

template <class In, class T, class Block>
GHN_DEVICE void backward_block(const Block& block, const BackwardArgs<T>& args, int64_t tile_size,
                               Arena<T> arena) {
  typedef NodeUpdate<T, 1> Update;
  const Problem& problem = args.problem;
  const Record& r = problem.shape.record;
  const int64_t c = r.c, channels = problem.shape.channels, N = problem.num_nodes;
  const int64_t sent_width = r.messages * c, held_width = 6 * c + r.hidden;
  const SafePlan safe = SafePlan::read(args.plan, problem);
  if (!safe.fits) return fill_nan<In, T>(block, args.grad_x, N * channels);
  auto* const partial = reinterpret_cast<EdgeSums<T>*>(arena.need(2 * kThreads));
  const auto inverses = Inverses<T>::fill(block, arena, safe.plan);
  T* const sent = arena.need(tile_size * sent_width);
  T* const hidden = arena.need(tile_size * r.hidden);
  T* const gates = arena.need(tile_size * 4 * c);
  // What forward left of a node: gates, the state before, hidden layers; and the gradient of its
  // state.
  T* const held = arena.need(tile_size * held_width);
  const PackedWeights<T> w = place_weights(block, arena, args.packed, r);
  const Spread by_channel = Spread::over(block, c), by_hidden = Spread::over(block, r.hidden);
  const Spread by_held = Spread::over(block, held_width);

  for (int64_t g = block.index(); g < safe.plan.num_graphs; g += block.count()) {
    const SafePlan::Range nodes = safe.nodes(g);
    const int64_t first = nodes.begin, n = nodes.end - nodes.begin;
    if (n == 0) continue;
    Arena<T> rest = arena;
    T* const near_message = rest.take(n * c);
    T* const d_message = near_message != nullptr ? near_message : args.d_message + first * c;
    T* const d_state = args.d_state + first * c;
    load_rows<In>(block, args.x, channels, args.start, c, first, n);
    load_rows<In>(block, args.grad, channels, args.d_state, c, first, n);
    for (int sweep = problem.sweeps - 1; sweep >= 0; --sweep) {
      T* const record = const_cast<T*>(args.record) + int64_t(sweep) * N * r.width;
      const Fields<T> f = Fields<T>::at(record, r, N, first);
      const T* const before = sweep > 0 ? f.state - N * r.width : args.start + first * c;
      const Factors<T> d = Factors<T>::at(
          args.factors + int64_t(sweep) * N * Factors<T>::width(r), r, N, first);
      const SweepOrder order = safe.order(sweep);
      const EdgeList edges = safe.scatter(sweep);
      const EdgeRows<T> rows{d_message, int(c), -1, r.messages == 2, inverses};
      const SafePlan::Range levels = safe.levels(order, g);
      for (int64_t level = levels.end - 1; level >= levels.begin; --level) {
        const SafePlan::Range places = safe.places(order, level);
        block.sync();
        for (int64_t at = places.begin; at < places.end; at += tile_size) {
          const int64_t left = places.end - at;
          const Tile tile{order.node + at, int(left < tile_size ? left : tile_size), n};
          for (int k = by_held.row; k < tile.count; k += by_held.rows) {
            for (int64_t j = by_held.lane; j < held_width; j += by_held.lanes) {
              const int64_t v = tile[k];
              held[k * held_width + j] = j < 4 * c   ? f.gates[v * 4 * c + j]
                                         : j < 5 * c ? before[v * c + j - 4 * c]
                                         : j < 6 * c ? d_state[v * c + j - 5 * c]
                                                     : f.hidden[v * r.hidden + j - 6 * c];
            }
          }
          over_edges(block, safe, edges, rows, tile, first, c, partial,
                     [&](int k, int64_t j, const EdgeSums<T>& sums) {
                       const int64_t place = tile[k] * sent_width + j;
                       const T near = Update::relu_backward(sums.near, f.sent[place]);
                       sent[k * sent_width + j] = d.sent[place] = near;
                       if (r.messages == 2) {
                         const T both =
                             Update::relu_backward(sums.near + sums.far, f.sent[place + c]);
                         sent[k * sent_width + c + j] = d.sent[place + c] = both;
                       }
                     });
          block.sync();
          for (int k = by_hidden.row; k < tile.count; k += by_hidden.rows) {
            for (int64_t o = by_hidden.lane; o < r.hidden; o += by_hidden.lanes) {
              const bool ve = o >= r.h[0];
              const T* const column = ve ? w.second[1] + o - r.h[0] : w.second[0] + o;
              const T sum = affine(T(0), column, ve ? r.h[1] : r.h[0],
                                   sent + k * sent_width + (ve ? c : 0), c);
              hidden[k * r.hidden + o] = d.hidden[tile[k] * r.hidden + o] =
                  Update::relu_backward(sum, held[k * held_width + 6 * c + o]);
            }
          }
          block.sync();
          for (int k = by_channel.row; k < tile.count; k += by_channel.rows) {
            for (int64_t j = by_channel.lane; j < c; j += by_channel.lanes) {
              const T* const own = held + k * held_width + j;
              const T grad = affine(own[5 * c], w.first + j, c, hidden + k * r.hidden, r.hidden);
              const auto u =
                  Update::gru_backward(grad, own[4 * c], own[0], own[c], own[3 * c], own[2 * c]);
              T* const near = gates + k * 4 * c + j;
              T* const far = d.gates + tile[k] * 4 * c + j;
              near[0] = far[0] = u.n, near[c] = far[c] = u.r;
              near[2 * c] = far[2 * c] = u.z, near[3 * c] = far[3 * c] = u.hn;
              d_state[tile[k] * c + j] = u.h;
            }
          }
          block.sync();
          for (int k = by_channel.row; k < tile.count; k += by_channel.rows) {
            for (int64_t j = by_channel.lane; j < c; j += by_channel.lanes) {
              d_message[tile[k] * c + j] = affine(T(0), w.ih + j, c, gates + k * 4 * c, 3 * c);
            }
          }
        }
      }
      block.sync();
      affine_rows(block, w.hh, c, d.gates + c, 4 * c, 3 * c, d_state, c, n,
                  [&](int64_t v, int64_t j) { return d_state[v * c + j]; });
    }
    block.sync();
    store_rows<In>(block, args.grad_x, channels, args.d_state, c, first, n);
  }
}

}  // namespace ghn::cuda
