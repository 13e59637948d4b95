// What one thread of a CUDA launch does in the expansion of parameters, apart from the barrier in
// the backward pass; compiled for host and device, so that tests on the host walk the same way.
#pragma once

#include "expand_params_plan.h"

namespace ghn {

template <class T, int kCount>
struct alignas(sizeof(T) * kCount) ExpandPack {
  T at[kCount];
};

// Contiguous run of `tiles` that falls to one of `blocks` blocks of threads.
struct TileRun {
  int64_t begin, end;

  GHN_INLINE TileRun(int64_t tiles, int64_t block, int64_t blocks)
      : begin(tiles * block / blocks), end(tiles * (block + 1) / blocks) {}
};

// Position of the last of `count` ascending entries that is at most `tile`; of equal entries, which
// those without elements have, the last one.
template <class First>
GHN_INLINE int64_t find_tile(First first, int64_t count, int64_t tile) {
  int64_t low = 0, high = count;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (first(middle) <= tile) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

// Elements [begin, begin + kTile) of a parameter and the gap behind it, as far as they go; `to` is
// where its element 0 goes. `aligned`: block tensors and flat buffer begin at multiples of 16 bytes.
template <class T>
GHN_INLINE void expand_tile(const ExpandRow& row, const T* block, uint32_t begin, bool aligned,
                            uint32_t thread, T* to) {
  typedef ExpandMath<T> Math;
  typedef typename Math::type M;
  constexpr uint32_t kCount = 16 / sizeof(T);
  const uint32_t size = uint32_t(row.size), left = uint32_t(row.padded) - begin;
  const uint32_t end = begin + (left < uint32_t(kTile) ? left : uint32_t(kTile));
  const M scale = M(row.scale);
  // `size` is a multiple of kCount then; the gap behind it need not be.
  if (aligned && row.linear &&
      (row.period | row.row_length | row.stride | row.source | row.offset) % kCount == 0) {
    for (uint32_t e = begin + thread * kCount; e < end; e += uint32_t(kThreads) * kCount) {
      if (e >= size) {
        for (uint32_t k = e; k < end && k < e + kCount; ++k) to[k] = Math::narrow(M(0));
        continue;
      }
      auto values = *reinterpret_cast<const ExpandPack<T, kCount>*>(block + row.from<uint32_t>(e));
      for (uint32_t k = 0; k < kCount; ++k) {
        values.at[k] =
            Math::narrow(normalise<M>(row.kind, Math::widen(values.at[k]), scale));
      }
      *reinterpret_cast<ExpandPack<T, kCount>*>(to + e) = values;
    }
    return;
  }
  for (uint32_t e = begin + thread; e < end; e += uint32_t(kThreads)) {
    M value = 0;
    if (e < size) {
      value = normalise<M>(row.kind, Math::widen(block[row.from<uint32_t>(e)]), scale);
    }
    to[e] = Math::narrow(value);
  }
}

// All that a thread writes. `block_at(b)` is the beginning of block tensor b.
template <class T, class BlockAt>
GHN_INLINE void expand_thread(const ExpandPlan& plan, BlockAt block_at, bool aligned, int64_t block,
                              int64_t blocks, uint32_t thread, T* out) {
  const int64_t rows = plan.header->rows;
  const TileRun run(plan.header->row_tiles, block, blocks);
  if (run.begin >= run.end) return;
  int64_t r = find_tile([&](int64_t i) { return plan.row_tile[i]; }, rows, run.begin);
  for (int64_t tile = run.begin; tile < run.end; ++tile) {
    while (r + 1 < rows && plan.row_tile[r + 1] <= tile) ++r;
    const ExpandRow row = plan.rows[r];
    expand_tile<T>(row, block_at(row.block) + row.source,
                   uint32_t((tile - plan.row_tile[r]) * kTile), aligned, thread, out + row.offset);
  }
}

// A thread's place in a tile of the backward pass: element `element` of the block tensor, and which
// part of its copies the thread sums.
struct GradientPlace {
  int64_t element;
  uint32_t lane, part, parts, width;

  GHN_INLINE GradientPlace(const ExpandSegment& segment, int64_t tile, uint32_t thread)
      : lane(thread % uint32_t(segment.width)),
        part(thread / uint32_t(segment.width)),
        parts(uint32_t(kThreads) / uint32_t(segment.width)),
        width(uint32_t(segment.width)) {
    element = segment.begin + (tile - segment.tile) * segment.width + lane;
  }
};

// A thread's part of the gradient of an element.
template <class T>
GHN_INLINE typename ExpandMath<T>::type partial_gradient(const ExpandPlan& plan,
                                                         const ExpandSegment& segment,
                                                         const GradientPlace& place, const T* grad,
                                                         const T* block) {
  typedef typename ExpandMath<T>::type M;
  M sum = 0;
  if (place.element >= segment.end) return sum;
  for (int32_t i = segment.first; i < segment.last; ++i) {
    const ExpandRow& row = plan.rows[plan.order[i]];
    const int64_t s = place.element - row.source;
    if (s < 0 || s >= row.block_size) continue;
    const M copies =
        row.gather<uint32_t>(grad + row.offset, uint32_t(s), place.part, place.parts);
    const M x = ExpandMath<T>::widen(block[place.element]);
    sum += copies * normalise_slope<M>(row.kind, x, M(row.scale));
  }
  return sum;
}

}  // namespace ghn
