// The forward kernel of the gated GNN: the code of one block, which walks the levels of its graph.
//
// Per tile of nodes of a level, and with a barrier after each: gather the messages, and what the
// state before the sweep adds to the gates; the gates; the hidden layers; what is sent on.
#pragma once

#include "gated_gnn_block.h"

namespace ghn::cuda {

template <class In, class T, class Block>
GHN_DEVICE void forward_block(const Block& block, const ForwardArgs<T>& args, int64_t tile_size,
                              Arena<T> arena) {
  typedef NodeUpdate<T, 1> Update;
  const Problem& problem = args.problem;
  const Record& r = problem.shape.record;
  const int64_t c = r.c, channels = problem.shape.channels, N = problem.num_nodes;
  const int64_t sent_width = r.messages * c;
  const SafePlan safe = SafePlan::read(args.plan, problem);
  if (!safe.fits) return fill_nan<In, T>(block, args.out, N * channels);
  auto* const partial = reinterpret_cast<EdgeSums<T>*>(arena.need(2 * kThreads));
  const auto inverses = Inverses<T>::fill(block, arena, safe.plan);
  T* const message = arena.need(tile_size * c);
  T* const held = arena.need(tile_size * 4 * c);  // what the state adds to r z n; the state
  T* const state = arena.need(tile_size * c);
  T* const hidden = arena.need(tile_size * r.hidden);
  const PackedWeights<T> w = place_weights(block, arena, args.packed, r);
  const Spread by_channel = Spread::over(block, c), by_hidden = Spread::over(block, r.hidden);
  const Spread by_sent = Spread::over(block, sent_width), by_held = Spread::over(block, 4 * c);

  for (int64_t g = block.index(); g < safe.plan.num_graphs; g += block.count()) {
    const SafePlan::Range nodes = safe.nodes(g);
    const int64_t first = nodes.begin, n = nodes.end - nodes.begin;
    if (n == 0) continue;
    Arena<T> rest = arena;
    T* const near_sent = rest.take(n * sent_width);
    load_rows<In>(block, args.x, channels, args.start, c, first, n);
    const T* before = args.start + first * c;
    for (int sweep = 0; sweep < problem.sweeps; ++sweep) {
      const Fields<T> f = Fields<T>::at(
          args.record + int64_t(sweep % args.records) * N * r.width, r, N, first);
      T* const sent = near_sent != nullptr ? near_sent : f.sent;
      block.sync();
      affine_rows(block, w.hh, 3 * c, before, c, c, f.gates, 4 * c, n,
                  [&](int64_t, int64_t o) { return w.hh_b[o]; });
      const SweepOrder order = safe.order(sweep);
      const EdgeList edges = safe.gather(sweep);
      const EdgeRows<T> rows{sent, int(sent_width), r.messages == 2 ? int(c) : -1, r.messages == 2,
                             inverses};
      const SafePlan::Range levels = safe.levels(order, g);
      for (int64_t level = levels.begin; level < levels.end; ++level) {
        const SafePlan::Range places = safe.places(order, level);
        block.sync();
        for (int64_t at = places.begin; at < places.end; at += tile_size) {
          const int64_t left = places.end - at;
          const Tile tile{order.node + at, int(left < tile_size ? left : tile_size), n};
          for (int k = by_held.row; k < tile.count; k += by_held.rows) {
            for (int64_t j = by_held.lane; j < 4 * c; j += by_held.lanes) {
              held[k * 4 * c + j] =
                  j < 3 * c ? f.gates[tile[k] * 4 * c + j] : before[tile[k] * c + j - 3 * c];
            }
          }
          over_edges(block, safe, edges, rows, tile, first, c, partial,
                     [&](int k, int64_t j, const EdgeSums<T>& sums) {
                       message[k * c + j] = f.message[tile[k] * c + j] = sums.near + sums.far;
                     });
          block.sync();
          for (int k = by_channel.row; k < tile.count; k += by_channel.rows) {
            for (int64_t j = by_channel.lane; j < c; j += by_channel.lanes) {
              T sum[3] = {w.ih_b[j], w.ih_b[c + j], w.ih_b[2 * c + j]};
              add_product(sum, w.ih + j, 3 * c, c, message + k * c, c);
              const T* const own = held + k * 4 * c + j;
              const auto u =
                  Update::gru(sum[0], sum[1], sum[2], own[0], own[c], own[2 * c], own[3 * c]);
              T* const gate = f.gates + tile[k] * 4 * c + j;
              gate[0] = u.r, gate[c] = u.z, gate[3 * c] = u.n;
              state[k * c + j] = f.state[tile[k] * c + j] = u.out;
            }
          }
          block.sync();
          for (int k = by_hidden.row; k < tile.count; k += by_hidden.rows) {
            for (int64_t o = by_hidden.lane; o < r.hidden; o += by_hidden.lanes) {
              const T sum = affine(w.first_b[o], w.first + o, r.hidden, state + k * c, c);
              hidden[k * r.hidden + o] = f.hidden[tile[k] * r.hidden + o] = Update::relu(sum);
            }
          }
          block.sync();
          for (int k = by_sent.row; k < tile.count; k += by_sent.rows) {
            for (int64_t o = by_sent.lane; o < sent_width; o += by_sent.lanes) {
              const bool ve = o >= c;
              const int64_t j = ve ? o - c : o, place = tile[k] * sent_width + o;
              const T* const layer = hidden + k * r.hidden + (ve ? r.h[0] : 0);
              const T bias = (ve ? w.second_b[1] : w.second_b[0])[j];
              const T value = Update::relu(affine(bias, (ve ? w.second[1] : w.second[0]) + j, c,
                                                  layer, ve ? r.h[1] : r.h[0]));
              sent[place] = value;
              f.sent[place] = value;
            }
          }
        }
      }
      before = f.state;
    }
    block.sync();
    store_rows<In>(block, args.out, channels, before - first * c, c, first, n);
  }
}

}  // namespace ghn::cuda
