// The packed plan of the expansion of parameters, for CUDA; made where the table is.

#include <cstring>

#include "../common/checks.h"
#include "../common/expand_params_args.h"
#include "../common/torch_call.h"

namespace ghn {

// Layout: see ExpandPlan in common/expand_params_plan.h.
Tensor expand_params_pack(const Tensor& table, TensorList blocks, int64_t numel) {
  GHN_CHECK(numel >= 0, "numel: got ", numel, ", needs at least 0");
  const std::vector<ExpandRow> rows = read_table(table, blocks, numel);
  const Chains found = find_chains(rows);

  // Every element of every block tensor lies in one segment: a chain, or a gap that no row reads.
  std::vector<ExpandSegment> segments;
  int64_t tiles = 0;
  const auto add = [&](int64_t block, int64_t begin, int64_t end, int64_t first, int64_t last) {
    if (begin == end) return;
    int64_t copies = 0;  // about how many elements are summed for one
    for (int64_t i = first; i < last; ++i) {
      const ExpandRow& row = rows[size_t(found.order[size_t(i)])];
      copies += row.size / row.block_size;
    }
    const int64_t width = copies < 8 ? kThreads : kWarp;
    segments.push_back({begin, end, tiles, int32_t(block), int32_t(first), int32_t(last),
                        int32_t(width), 0});
    tiles += (end - begin + width - 1) / width;
  };
  size_t next = 0;
  for (size_t b = 0; b < blocks.size(); ++b) {
    int64_t end = 0;
    for (; next < found.chains.size() && found.chains[next].block == int32_t(b); ++next) {
      const Chain& chain = found.chains[next];
      add(int64_t(b), end, chain.begin, 0, 0);
      add(int64_t(b), chain.begin, chain.end, chain.first, chain.last);
      end = chain.end;
    }
    add(int64_t(b), end, blocks[b].numel(), 0, 0);
  }

  ExpandHeader header{};
  header.fingerprint = fingerprint(table, blocks, numel);
  header.numel = numel;
  header.rows = int64_t(rows.size()), header.segments = int64_t(segments.size());
  header.segment_tiles = tiles;
  std::vector<int64_t> row_tiles;
  for (const ExpandRow& row : rows) {
    GHN_CHECK(row.padded < (int64_t(1) << 31) && row.block_size < (int64_t(1) << 31), "plan.rows[",
              row_tiles.size(), "]: got ", row.padded,
              " elements, CUDA needs fewer than 2^31 in one parameter");
    row_tiles.push_back(header.row_tiles);
    header.row_tiles += (row.padded + kTile - 1) / kTile;
  }
  Tensor packed = empty({ExpandPlan::bytes(header)}, kByte);
  uint8_t* at = packed.data_ptr<uint8_t>();
  std::memset(at, 0, size_t(packed.numel()));
  const auto write = [&](const void* from, size_t bytes) {
    if (bytes > 0) std::memcpy(at, from, bytes);
    at += ExpandPlan::aligned(int64_t(bytes));
  };
  write(&header, sizeof(header));
  write(rows.data(), rows.size() * sizeof(ExpandRow));
  write(row_tiles.data(), row_tiles.size() * sizeof(int64_t));
  write(segments.data(), segments.size() * sizeof(ExpandSegment));
  write(found.order.data(), found.order.size() * sizeof(int32_t));
  return packed;
}

// It needs the sizes of the blocks alone, wherever they are.
STABLE_TORCH_LIBRARY_IMPL(ghn_fast, CompositeExplicitAutograd, m) {
  m.impl("expand_params_pack", boxed<&expand_params_pack>);
}

}  // namespace ghn
