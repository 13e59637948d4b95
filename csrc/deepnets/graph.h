// From a network to its graph: operations as autograd would record them, then the steps of
// ghn_fast/capturing/raw.py (linearise, order_nodes) and contract.py.
#pragma once

#include <cstdint>
#include <vector>

#include "network.h"

namespace ghn::deepnets {

// What is told apart of the kinds of operations; all others are contracted alike.
enum class Kind : uint8_t {
  kOther, kParam, kInput, kMaxPool, kAvgPool, kClone, kMul, kAdd, kConcat, kMean, kGate, kSoftmax
};

// Recorded operations. Each reads at most one parameter that has a node.
class Ops {
 public:
  struct Op {
    Kind kind;
    int32_t first, count;  // operations that it reads
    int32_t param;         // -1 if none
  };

  int32_t add(Kind kind, const int32_t* inputs, int32_t count, int32_t param = -1);
  int32_t add(Kind kind, int32_t input, int32_t param = -1) {
    return add(kind, &input, input < 0 ? 0 : 1, param);
  }

  const int32_t* inputs(const Op& op) const { return inputs_.data() + op.first; }
  const std::vector<Op>& all() const { return ops_; }
  void clear() { ops_.clear(), inputs_.clear(); }

 private:
  std::vector<Op> ops_;
  std::vector<int32_t> inputs_;
};

// Records a network; returns its last operation.
int32_t record_network(Ops& ops, const NetworkSpec& spec, const Params& params);

// An architecture graph; nodes in topological order.
struct Graph {
  std::vector<int8_t> type;
  std::vector<int32_t> param;   // parameter of each node, -1 if it has none
  std::vector<int32_t> ptr, to;  // edges by their sender, ascending

  int32_t nodes() const { return int32_t(type.size()); }
};

// Lists, orders and contracts what `output` reads.
void make_graph(Graph& graph, const Ops& ops, int32_t output, const Params& params);

}  // namespace ghn::deepnets
