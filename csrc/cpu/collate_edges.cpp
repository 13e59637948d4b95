// The edges of several graphs in one table, nodes numbered through: one pass that checks and copies.

#include <string>
#include <vector>

#include "../common/checks.h"
#include "../common/parallel.h"
#include "../common/torch_call.h"

namespace ghn {

Tensor collate_edges_cpu(TensorList edges, IntArrayRef offsets) {
  const int64_t graphs = edges.size();
  GHN_CHECK(graphs > 0, "edges: got no tensors, needs one per graph");
  GHN_CHECK(int64_t(offsets.size()) == graphs + 1, "offsets: got ", offsets.size(),
            " numbers, needs ", graphs + 1, ", one more than graphs");
  std::vector<Tensor> rows;
  std::vector<int64_t> first = {0};
  for (int64_t g = 0; g < graphs; ++g) {
    const std::string name = "edges[" + std::to_string(g) + "]";
    check_dtype(edges[g], kLong, name.c_str());
    check_device(edges[g], kCPU, name.c_str());
    GHN_CHECK(edges[g].dim() == 2 && edges[g].size(1) == 3, name, ": got shape ", edges[g].sizes(),
              ", needs (M, 3)");
    GHN_CHECK(offsets[g] >= 0 && offsets[g] <= offsets[g + 1], "offsets: ", offsets[g + 1],
              " comes after ", offsets[g], ", needs numbers that ascend from 0");
    rows.push_back(edges[g].contiguous());
    first.push_back(first.back() + rows.back().size(0));
  }
  Tensor out = empty({first.back(), 3}, edges[0].options());
  int64_t* data = out.data_ptr<int64_t>();
  parallel_for(0, graphs, 1, [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) {
      const int64_t* row = rows[g].const_data_ptr<int64_t>();
      const int64_t shift = offsets[g], nodes = offsets[g + 1] - shift, count = rows[g].size(0);
      int64_t* to = data + 3 * first[g];
      for (int64_t e = 0; e < count; ++e, row += 3, to += 3) {
        GHN_CHECK(row[0] >= 0 && row[0] < nodes && row[1] >= 0 && row[1] < nodes, "edges[", g,
                  "]: row ", e, " joins nodes ", row[0], " and ", row[1],
                  ", needs nodes from 0 to ", nodes - 1);
        GHN_CHECK(row[0] < row[1], "edges[", g, "]: row ", e, " leads from node ", row[0],
                  " to node ", row[1],
                  ", needs nodes numbered in topological order (from < to); is there a "
                  "cycle?");
        GHN_CHECK(row[2] >= 1 && row[2] < nodes, "edges[", g, "]: row ", e, " has distance ",
                  row[2], ", needs 1 to ", nodes - 1);
        to[0] = row[0] + shift;
        to[1] = row[1] + shift;
        to[2] = row[2];
      }
    }
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(ghn_fast, CPU, m) { m.impl("collate_edges", boxed<&collate_edges_cpu>); }

}  // namespace ghn
