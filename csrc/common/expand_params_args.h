// Checks of what the expansion of parameters is called with, for all back ends.
#pragma once

#include <algorithm>
#include <bit>
#include <vector>

#include "checks.h"
#include "expand_params.h"
#include "expand_params_plan.h"

namespace ghn {

// Columns of the table of a plan: block, source, block shape, shape, kind, offset, and the scale as
// the bits of a double.
constexpr int64_t kTableColumns = 13;

inline bool is_floating(ScalarType type) {
  return type == kFloat || type == kDouble || type == kHalf || type == kBFloat16;
}

inline void check_blocks(TensorList blocks) {
  GHN_CHECK(!blocks.empty(), "blocks: got none, needs at least one tensor");
  for (size_t i = 0; i < blocks.size(); ++i) {
    GHN_CHECK(
        is_floating(blocks[i].scalar_type()) && blocks[i].scalar_type() == blocks[0].scalar_type(),
        "blocks[", i, "]: got ", blocks[i].scalar_type(),
        ", needs the floating-point type of blocks[0] (", blocks[0].scalar_type(), ")");
    GHN_CHECK(blocks[i].device() == blocks[0].device(), "blocks[", i, "]: got a tensor on ",
              blocks[i].device(), ", needs it on ", blocks[0].device(), ", as blocks[0] is");
  }
}

// Product of four extents, each of which is in range.
inline int64_t product(const int64_t* extents) {
  return extents[0] * extents[1] * extents[2] * extents[3];
}

// The rows of a table, every index checked against the blocks and the flat buffer of `numel`
// elements; without one (numel < 0) the offsets do not matter.
inline std::vector<ExpandRow> read_table(const Tensor& table, TensorList blocks, int64_t numel) {
  check_blocks(blocks);
  check_dtype(table, kLong, "table");
  check_device(table, kCPU, "table");
  GHN_CHECK(table.dim() == 2 && table.size(1) == kTableColumns, "table: got shape ", table.sizes(),
            ", needs (R, ", kTableColumns, ")");
  const Tensor contiguous = table.contiguous();
  const int64_t* at = contiguous.const_data_ptr<int64_t>();
  std::vector<ExpandRow> rows(size_t(table.size(0)));
  int64_t end = 0;
  // Each extent below 2^15 keeps every product below 2^60; more is allowed in the leading two.
  const auto fits = [](const int64_t* s, int64_t least) {
    const int64_t most = int64_t(1) << 31;
    for (int k = 0; k < 4; ++k) {
      if (s[k] < least || s[k] >= most) return false;
    }
    return double(s[0]) * double(s[1]) * double(s[2]) * double(s[3]) < double(int64_t(1) << 48);
  };
  for (size_t i = 0; i < rows.size(); ++i, at += kTableColumns) {
    ExpandRow& row = rows[i];
    GHN_CHECK(at[0] >= 0 && at[0] < int64_t(blocks.size()), "plan.rows[", i, "].block: got ", at[0],
              ", needs 0 to ", blocks.size() - 1);
    GHN_CHECK(fits(at + 2, 1) && fits(at + 6, 0), "plan.rows[", i, "]: got shapes (", at[2], ", ",
              at[3], ", ", at[4], ", ", at[5], ") and (", at[6], ", ", at[7], ", ", at[8], ", ",
              at[9], ")");
    GHN_CHECK(at[10] >= kCopy && at[10] <= kShift, "plan.rows[", i, "].kind: got ", at[10],
              ", needs ", int(kCopy), " to ", int(kShift));
    const int64_t read = product(at + 2), written = product(at + 6);
    const int64_t there = blocks[size_t(at[0])].numel();
    GHN_CHECK(at[1] >= 0 && at[1] <= there && read <= there - at[1], "plan.rows[", i,
              "]: reads elements ", at[1], " to ", at[1] + read, " of blocks[", at[0],
              "], which has ", there);
    if (numel >= 0) {
      GHN_CHECK(i == 0 ? at[11] == 0 : at[11] >= end, "plan.rows[", i, "].offset: got ", at[11],
                ", needs ", i == 0 ? "" : "at least ", end);
      GHN_CHECK(at[11] <= numel && written <= numel - at[11], "plan.numel: got ", numel,
                ", needs at least ", at[11] + written, ", the end of rows[", i, "]");
      end = at[11] + written;
    }
    row.block = int32_t(at[0]), row.source = at[1], row.kind = int32_t(at[10]);
    row.offset = at[11], row.scale = std::bit_cast<double>(at[12]);
    std::copy_n(at + 2, 4, row.block_shape), std::copy_n(at + 6, 4, row.shape);
    row.derive();
    row.padded = row.size;
    if (i > 0) rows[i - 1].padded = row.offset - rows[i - 1].offset;
  }
  if (numel >= 0) {
    if (!rows.empty()) rows.back().padded = numel - rows.back().offset;
    GHN_CHECK(!rows.empty() || numel == 0, "plan.numel: got ", numel,
              ", needs 0 for a plan without rows");
  }
  return rows;
}

// What a packed plan is made from.
inline uint64_t fingerprint(const Tensor& table, TensorList blocks, int64_t numel) {
  const Tensor contiguous = table.contiguous();
  uint64_t hash = fingerprint(contiguous.const_data_ptr<int64_t>(), contiguous.numel());
  for (const Tensor& block : blocks) {
    const int64_t size = block.numel();
    hash = fingerprint(&size, 1, hash);
  }
  return fingerprint(&numel, 1, hash);
}

// Rows that read the same elements belong together; a chain can be handled apart from all others.
struct Chain {
  int32_t block;
  int64_t begin, end;  // elements of the block tensor
  int64_t first, last;  // positions in `order`
};

struct Chains {
  std::vector<int32_t> order;  // of the rows, by block and source
  std::vector<Chain> chains;   // ascending
};

inline Chains find_chains(const std::vector<ExpandRow>& rows) {
  Chains found;
  for (size_t i = 0; i < rows.size(); ++i) found.order.push_back(int32_t(i));
  std::stable_sort(found.order.begin(), found.order.end(), [&](int32_t a, int32_t b) {
    const ExpandRow &x = rows[size_t(a)], &y = rows[size_t(b)];
    return x.block != y.block ? x.block < y.block : x.source < y.source;
  });
  for (size_t i = 0; i < found.order.size(); ++i) {
    const ExpandRow& row = rows[size_t(found.order[i])];
    const int64_t end = row.source + row.block_size;
    if (!found.chains.empty() && found.chains.back().block == row.block &&
        found.chains.back().end > row.source) {
      Chain& chain = found.chains.back();
      chain.end = std::max(chain.end, end), chain.last = int64_t(i) + 1;
    } else {
      found.chains.push_back({row.block, row.source, end, int64_t(i), int64_t(i) + 1});
    }
  }
  return found;
}

}  // namespace ghn
