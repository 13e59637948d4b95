// The packed plan of the expansion of parameters: one array of bytes that the device reads.
#pragma once

#include <cstdint>

#include "expand_params.h"

namespace ghn {

// Shape of the work on CUDA. A thread block of the forward pass writes kTile elements of one
// parameter; one of the backward pass sums the copies of 32 elements of a block with 8 warps, or of
// 256 elements where there are few copies.
constexpr int64_t kThreads = 256, kWarp = 32, kTile = 4096;

struct ExpandHeader {
  uint64_t fingerprint;  // of the table and the sizes that the plan was made from
  int64_t numel, rows, row_tiles, segments, segment_tiles;
};

// Elements [begin, end) of a block tensor and the rows that read them: order[first..last).
struct ExpandSegment {
  int64_t begin, end, tile;  // its first tile
  int32_t block, first, last, width;
  int64_t unused;  // the number of segments follows from the size of the plan
};

struct ExpandPlan {
  const ExpandHeader* header;
  const ExpandRow* rows;
  const int64_t* row_tile;  // first tile of each row
  const ExpandSegment* segments;
  const int32_t* order;

  static GHN_INLINE int64_t aligned(int64_t bytes) { return (bytes + 15) / 16 * 16; }

  static GHN_INLINE int64_t bytes(const ExpandHeader& h) {
    return aligned(sizeof(ExpandHeader)) + aligned(h.rows * int64_t(sizeof(ExpandRow))) +
           aligned(h.rows * int64_t(sizeof(int64_t))) +
           aligned(h.segments * int64_t(sizeof(ExpandSegment))) +
           aligned(h.rows * int64_t(sizeof(int32_t)));
  }

  // How many segments a plan of `bytes` for so many rows has, below 0 if it is none.
  static int64_t segments_in(int64_t bytes_there, int64_t rows) {
    ExpandHeader header{};
    header.rows = rows;
    const int64_t rest = bytes_there - bytes(header);
    const bool whole = rest >= 0 && rest % int64_t(sizeof(ExpandSegment)) == 0;
    return whole ? rest / int64_t(sizeof(ExpandSegment)) : -1;
  }

  // `rows` and `segments` are those of the header, which may lie where it cannot be read yet.
  static GHN_INLINE ExpandPlan read(const uint8_t* at, int64_t rows, int64_t segments) {
    ExpandPlan plan;
    plan.header = reinterpret_cast<const ExpandHeader*>(at);
    at += aligned(sizeof(ExpandHeader));
    plan.rows = reinterpret_cast<const ExpandRow*>(at);
    at += aligned(rows * int64_t(sizeof(ExpandRow)));
    plan.row_tile = reinterpret_cast<const int64_t*>(at);
    at += aligned(rows * int64_t(sizeof(int64_t)));
    plan.segments = reinterpret_cast<const ExpandSegment*>(at);
    at += aligned(segments * int64_t(sizeof(ExpandSegment)));
    plan.order = reinterpret_cast<const int32_t*>(at);
    return plan;
  }
};

// FNV-1a over 64-bit words.
inline uint64_t fingerprint(const int64_t* words, int64_t count,
                            uint64_t hash = 0xcbf29ce484222325u) {
  for (int64_t i = 0; i < count; ++i) hash = (hash ^ uint64_t(words[i])) * 0x100000001b3u;
  return hash;
}

}  // namespace ghn
