// Architectures of DeepNets-1M from their packed records: sizes, and graphs with their schedule.

#include <limits>
#include <tuple>

#include "../common/checks.h"
#include "../common/per_thread.h"
#include "../common/torch_call.h"
#include "graph.h"
#include "network.h"
#include "schedule.h"

namespace ghn {
namespace {

using namespace deepnets;

void check_records(const Tensor& records) {
  check_dtype(records, kByte, "records");
  GHN_CHECK(records.dim() == 1, "records: got shape ", records.sizes(), ", needs (bytes,)");
}

void check_connected(const NetworkSpec& spec, int64_t index) {
  GHN_CHECK(spec.connected, "config: no path leads from the input to the output (record ", index,
            "); needs fewer 'none' operations");
}

void derive(Graph& graph, const NetworkSpec& spec, const Params& params) {
  auto& ops = per_thread<Ops>();
  make_graph(graph, ops, record_network(ops, spec, params), params);
}

// Parameters that no node stands for, in the module's order.
Tensor skipped_names(const Graph& graph, const Params& params) {
  std::vector<char> reached(params.all.size(), 0);
  for (const int32_t p : graph.param) {
    if (p < 0) continue;
    reached[p] = 1;
    if (params.all[p].shift >= 0) reached[params.all[p].shift] = 1;
  }
  std::vector<int32_t> names;
  for (size_t p = 0; p < reached.size(); ++p) {
    if (!reached[p]) names.push_back(params.all[p].name);
  }
  Tensor result = empty({int64_t(names.size())}, kInt);
  std::copy(names.begin(), names.end(), result.data_ptr<int32_t>());
  return result;
}

// Rows (name, dims, shape): name -1 without a parameter, dims 0 without a shape.
Tensor node_table(const Graph& graph, const Params& shapes) {
  Tensor table = empty({graph.nodes(), 6}, kInt);
  int32_t* row = table.data_ptr<int32_t>();
  for (int32_t n = 0; n < graph.nodes(); ++n, row += 6) {
    const int32_t p = graph.param[n];
    const bool pool = graph.type[n] == kTypeMaxPool || graph.type[n] == kTypeAvgPool;
    row[0] = p < 0 ? -1 : shapes.all[p].name;
    row[1] = p >= 0 ? shapes.all[p].dims : pool ? 4 : 0;
    for (int d = 0; d < 4; ++d) {
      const int64_t size = p >= 0 ? shapes.all[p].shape[d] : pool ? (d < 2 ? 1 : 3) : 1;
      GHN_CHECK(size <= std::numeric_limits<int32_t>::max(),
                "record: a parameter has a dimension of ", size, ", needs less than 2^31");
      row[2 + d] = int32_t(size);
    }
  }
  return table;
}

}  // namespace

Tensor deepnets_sizes_cpu(const Tensor& records, const Tensor& ends, int64_t num_classes,
                          IntArrayRef image_sizes, bool nodes) {
  check_records(records);
  check_dtype(ends, kLong, "ends");
  GHN_CHECK(ends.dim() == 1, "ends: got shape ", ends.sizes(), ", needs (B,)");
  GHN_CHECK(!nodes || !image_sizes.empty(), "image_sizes: got none, needs one for nodes");
  const Tensor data = records.contiguous(), stops = ends.contiguous();
  const auto* bytes = data.const_data_ptr<uint8_t>();
  const auto* end = stops.const_data_ptr<int64_t>();
  const int64_t count = stops.numel(), columns = 1 + int64_t(image_sizes.size());
  Tensor result = empty({count, columns}, kLong);
  auto* row = result.data_ptr<int64_t>();
  auto& graph = per_thread<Graph>();
  int64_t start = 0;
  for (int64_t i = 0; i < count; ++i, row += columns) {
    GHN_CHECK(end[i] >= start && end[i] <= data.numel(), "ends: got ", end[i], " after ", start,
              ", needs numbers that ascend up to ", data.numel());
    const Net net = Net::read(bytes + start, end[i] - start, i);
    start = end[i];
    row[0] = 0;
    for (int64_t s = 0; s + 1 < columns; ++s) {
      const NetworkSpec spec = NetworkSpec::of(net, num_classes, image_sizes[s]);
      const Params params = Params::of(spec);
      row[1 + s] = count_elements(params, i);
      if (nodes && s == 0) {
        check_connected(spec, i);
        derive(graph, spec, params);
        row[0] = graph.nodes();
      }
    }
  }
  return result;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> deepnets_graph_cpu(const Tensor& record,
                                                              int64_t num_classes,
                                                              int64_t image_size,
                                                              int64_t structure_size,
                                                              int64_t virtual_edges) {
  check_records(record);
  GHN_CHECK(virtual_edges >= 1, "virtual_edges: got ", virtual_edges,
            ", needs at least 1 (1 means none)");
  const Tensor bytes = record.contiguous();
  const Net net = Net::read(bytes.const_data_ptr<uint8_t>(), bytes.numel(), 0);
  const NetworkSpec spec = NetworkSpec::of(net, num_classes, structure_size);
  check_connected(spec, 0);
  const Params params = Params::of(spec);
  auto& graph = per_thread<Graph>();
  derive(graph, spec, params);
  Tensor table;
  if (image_size == structure_size) {
    table = node_table(graph, params);
  } else {
    table = node_table(graph, Params::of(NetworkSpec::of(net, num_classes, image_size)));
  }
  Tensor types = empty({graph.nodes()}, kLong);
  std::copy(graph.type.begin(), graph.type.end(), types.data_ptr<int64_t>());
  return {types, table, skipped_names(graph, params), make_plan(graph, virtual_edges)};
}

STABLE_TORCH_LIBRARY_IMPL(ghn_fast, CPU, m) {
  m.impl("deepnets_sizes", boxed<&deepnets_sizes_cpu>);
  m.impl("deepnets_graph", boxed<&deepnets_graph_cpu>);
}

}  // namespace ghn
