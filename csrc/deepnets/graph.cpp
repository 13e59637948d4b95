// Recorded operations to an architecture graph (ghn_fast/capturing/raw.py and contract.py).
//
// Edges are sets: the order within a set never matters, except where nodes are sorted by number.
#include "graph.h"

#include <algorithm>

#include "../common/per_thread.h"

namespace ghn::deepnets {
namespace {

using List = std::vector<int32_t>;

// Places between the attention's softmax and the copy that merges its heads, and between the gate
// of a squeeze-and-excitation block and the product that applies it.
constexpr int64_t kSoftmaxToCopy = 11, kGateToProduct = 2;

void insert(List& list, int32_t value) {
  if (std::find(list.begin(), list.end(), value) == list.end()) list.push_back(value);
}

void erase(List& list, int32_t value) {
  const auto at = std::find(list.begin(), list.end(), value);
  if (at == list.end()) return;
  *at = list.back();
  list.pop_back();
}

struct Nodes {
  std::vector<Kind> kind;
  List param;
  std::vector<List> preds, succs;
  List order;
  int32_t count = 0;

  // Lists keep their memory from graph to graph.
  void clear() {
    for (int32_t i = 0; i < count; ++i) preds[i].clear(), succs[i].clear();
    kind.clear(), param.clear(), order.clear();
    count = 0;
  }

  int32_t add(Kind k, int32_t p) {
    kind.push_back(k), param.push_back(p);
    if (size_t(count) == preds.size()) preds.emplace_back(), succs.emplace_back();
    return count++;
  }

  void connect(int32_t source, int32_t target) {
    if (source == target) return;
    insert(succs[source], target);
    insert(preds[target], source);
  }

  void remove(const std::vector<char>& gone) {
    for (int32_t n = 0; n < count; ++n) {
      if (!gone[n]) continue;
      for (const int32_t p : preds[n]) erase(succs[p], n);
      for (const int32_t s : succs[n]) erase(preds[s], n);
    }
    order.erase(std::remove_if(order.begin(), order.end(), [&](int32_t n) { return gone[n]; }),
                order.end());
  }
};

// Operations behind `output`, depth first; a parameter stands for the one that reads it.
void linearise(Nodes& nodes, const Ops& ops, int32_t output) {
  const auto& all = ops.all();
  List node(all.size(), -1), visited, stack{output};
  while (!stack.empty()) {
    const int32_t op = stack.back();
    stack.pop_back();
    if (node[op] >= 0) continue;
    const Ops::Op& raw = all[op];
    visited.push_back(op);
    node[op] = nodes.add(raw.param < 0 ? raw.kind : Kind::kParam, raw.param);
    const int32_t* inputs = ops.inputs(raw);
    for (int32_t i = raw.count; i-- > 0;) stack.push_back(inputs[i]);
  }
  for (const int32_t op : visited) {
    const int32_t* inputs = ops.inputs(all[op]);
    for (int32_t i = 0; i < all[op].count; ++i) nodes.connect(node[inputs[i]], node[op]);
  }
}

// Linear weights before their biases, the input, then generations.
void order_nodes(Nodes& nodes, const Params& params) {
  for (int32_t n = 0; n < nodes.count; ++n) {
    if (nodes.param[n] < 0 || !params.all[nodes.param[n]].linear) continue;
    const List readers = nodes.succs[n];
    for (const int32_t reader : readers) {
      const List sources = nodes.preds[reader];
      for (const int32_t source : sources) erase(nodes.succs[source], reader);
      nodes.preds[reader].clear();
      for (const int32_t source : sources) nodes.connect(source, n);
      nodes.connect(n, reader);
    }
  }
  const int32_t last = nodes.count;
  const int32_t entrance = nodes.add(Kind::kInput, -1);
  for (int32_t n = 0; n < last; ++n) {
    if (nodes.preds[n].empty()) nodes.connect(entrance, n);
  }
  List missing(nodes.count);
  for (int32_t n = 0; n < nodes.count; ++n) missing[n] = int32_t(nodes.preds[n].size());
  // One list serves all generations: those of a generation are appended while it is read.
  nodes.order.push_back(entrance);
  for (size_t place = 0; place < nodes.order.size(); ++place) {
    List& succs = nodes.succs[nodes.order[place]];
    std::sort(succs.begin(), succs.end());
    for (const int32_t succ : succs) {
      if (--missing[succ] == 0) nodes.order.push_back(succ);
    }
  }
}

// A positional encoding gets a node of its own beside the sum that adds it.
void split_positional_encodings(Nodes& nodes, const Params& params) {
  List order;
  for (const int32_t n : nodes.order) {
    order.push_back(n);
    if (nodes.param[n] < 0 || params.all[nodes.param[n]].type != kTypePosEnc) continue;
    const int32_t total = nodes.add(Kind::kAdd, -1);
    order.push_back(total);
    const List preds = nodes.preds[n], succs = nodes.succs[n];
    for (const int32_t pred : preds) {
      erase(nodes.succs[pred], n);
      nodes.connect(pred, total);
    }
    for (const int32_t succ : succs) {
      erase(nodes.preds[succ], n);
      nodes.connect(total, succ);
    }
    nodes.preds[n].clear();
    nodes.succs[n].clear();
    nodes.connect(n, total);
  }
  nodes.order = std::move(order);
}

bool qualifies(const Nodes& nodes, int64_t place) {
  const int32_t n = nodes.order[place];
  const auto stands_before = [&](int64_t places, Kind kind) {
    return place >= places && nodes.kind[nodes.order[place - places]] == kind;
  };
  switch (nodes.kind[n]) {
    case Kind::kMul: return stands_before(kGateToProduct, Kind::kGate);
    case Kind::kClone: return stands_before(kSoftmaxToCopy, Kind::kSoftmax);
    case Kind::kMean: return true;  // a mean that keeps no dimension is recorded as kOther
    default: return nodes.preds[n].size() > 1;
  }
}

void contract_kind(Nodes& nodes, Kind kind) {
  std::vector<char> gone(nodes.count, 0);
  bool any = false;
  for (size_t place = 0; place < nodes.order.size(); ++place) {
    const int32_t n = nodes.order[place];
    if (nodes.kind[n] != kind || qualifies(nodes, place)) continue;
    for (const int32_t pred : nodes.preds[n]) {
      for (const int32_t succ : nodes.succs[n]) nodes.connect(pred, succ);
    }
    gone[n] = true;
    any = true;
  }
  if (any) nodes.remove(gone);
}

bool unsupported(Kind kind) {
  return kind == Kind::kOther || kind == Kind::kGate || kind == Kind::kSoftmax;
}

void contract_unsupported(Nodes& nodes) {
  size_t kept = 0;
  for (const int32_t n : nodes.order) {
    if (!unsupported(nodes.kind[n])) {
      nodes.order[kept++] = n;
      continue;
    }
    for (const int32_t pred : nodes.preds[n]) {
      erase(nodes.succs[pred], n);
      for (const int32_t succ : nodes.succs[n]) insert(nodes.succs[pred], succ);
    }
    for (const int32_t succ : nodes.succs[n]) {
      erase(nodes.preds[succ], n);
      for (const int32_t pred : nodes.preds[n]) insert(nodes.preds[succ], pred);
    }
  }
  nodes.order.resize(kept);
}

NodeType type_of(const Nodes& nodes, int32_t n, const Params& params) {
  switch (nodes.kind[n]) {
    case Kind::kParam: return params.all[nodes.param[n]].type;
    case Kind::kInput: return kTypeInput;
    case Kind::kMaxPool: return kTypeMaxPool;
    case Kind::kAvgPool: return kTypeAvgPool;
    case Kind::kClone: return kTypeMsa;
    case Kind::kMul: return kTypeCse;
    case Kind::kAdd: return kTypeSum;
    case Kind::kConcat: return kTypeConcat;
    case Kind::kMean: return kTypeGlobAvg;
    default: return kNoType;
  }
}

}  // namespace

void make_graph(Graph& graph, const Ops& ops, int32_t output, const Params& params) {
  auto& nodes = per_thread<Nodes>();
  nodes.clear();
  linearise(nodes, ops, output);
  order_nodes(nodes, params);
  split_positional_encodings(nodes, params);
  contract_kind(nodes, Kind::kMul);
  contract_kind(nodes, Kind::kClone);
  contract_unsupported(nodes);
  contract_kind(nodes, Kind::kMean);
  contract_kind(nodes, Kind::kAdd);
  contract_kind(nodes, Kind::kConcat);

  graph.type.clear(), graph.param.clear(), graph.ptr.clear(), graph.to.clear();
  List place(nodes.count, -1);
  for (size_t i = 0; i < nodes.order.size(); ++i) place[nodes.order[i]] = int32_t(i);
  for (const int32_t n : nodes.order) {
    graph.type.push_back(type_of(nodes, n, params));
    graph.param.push_back(nodes.param[n]);
    graph.ptr.push_back(int32_t(graph.to.size()));
    for (const int32_t succ : nodes.succs[n]) graph.to.push_back(place[succ]);
    std::sort(graph.to.begin() + graph.ptr.back(), graph.to.end());
  }
  graph.ptr.push_back(int32_t(graph.to.size()));
}

}  // namespace ghn::deepnets
