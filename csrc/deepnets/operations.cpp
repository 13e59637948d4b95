// Operations of a network, as autograd would record them (ghn_fast/deepnets/graphs).
#include <algorithm>

#include "graph.h"

namespace ghn::deepnets {

int32_t Ops::add(Kind kind, const int32_t* inputs, int32_t count, int32_t param) {
  ops_.push_back({kind, int32_t(inputs_.size()), count, param});
  inputs_.insert(inputs_.end(), inputs, inputs + count);
  return int32_t(ops_.size()) - 1;
}

namespace {

constexpr Kind kOther = Kind::kOther;

struct Recorder {
  Ops& ops;
  const NetworkSpec& spec;
  const Params& params;

  int32_t chain(int32_t x, int count) {
    for (int i = 0; i < count; ++i) x = ops.add(kOther, x);
    return x;
  }

  int32_t pair(Kind kind, int32_t a, int32_t b, int32_t param = -1) {
    const int32_t inputs[2] = {a, b};
    return ops.add(kind, inputs, 2, param);
  }

  // Letters as in operations.record_chain; `param` moves on. -1 stands for the image.
  int32_t layers(int32_t x, const char* letters, int32_t& param) {
    for (; *letters; ++letters) {
      if (*letters == 'r') {
        x = ops.add(kOther, x);
      } else if (*letters == 'c') {
        x = ops.add(kOther, x, param++);
      } else if (spec.norm) {
        x = ops.add(kOther, x, param);
        param += 2;
      }
    }
    return x;
  }

  int32_t factorized(int32_t x, int32_t param, bool odd) {
    x = ops.add(kOther, x);
    const int32_t first = ops.add(kOther, x, param++);
    const int32_t shifted = chain(x, odd ? 3 : 2);
    const int32_t second = ops.add(kOther, shifted, param++);
    return layers(pair(Kind::kConcat, first, second), "n", param);
  }

  // A linear layer; its bias comes before the rest, and behind the weight.
  int32_t linear(int32_t x, int32_t weight) {
    return pair(kOther, x, ops.add(kOther, -1, weight), weight + 1);
  }

  int32_t cse(int32_t x, int32_t param, bool halves, bool sliced) {
    const int32_t flat = ops.add(kOther, sliced ? ops.add(Kind::kClone, x) : x);
    // The mean keeps no dimension, so it is no node.
    const int32_t squeezed = ops.add(kOther, flat);
    const int32_t hidden = ops.add(kOther, linear(squeezed, param));
    const int32_t gate = ops.add(Kind::kGate, linear(hidden, param + 2));
    const int32_t scaled = pair(Kind::kMul, x, ops.add(kOther, gate));
    return halves ? chain(scaled, 2) : scaled;
  }

  int32_t linear_on_tokens(int32_t x, int32_t weight) {
    return ops.add(kOther, linear(ops.add(kOther, x), weight));
  }

  int32_t msa(int32_t x, int32_t param) {
    // to_qkv, to_out and its bias, ln1 and ln2 with their shifts, two linear layers.
    const int32_t qkv = param, out = param + 1, ln1 = param + 3, ln2 = param + 5, up = param + 7,
                  down = param + 9;
    const int32_t tokens = chain(x, 2);
    const int32_t normed = ops.add(kOther, tokens, ln1);
    const int32_t flat = ops.add(kOther, normed);
    const int32_t parts = chain(pair(kOther, flat, ops.add(kOther, -1, qkv)), 2);
    const bool narrow = params.all[out].shape[1] == kHeads;
    int32_t scores;
    if (narrow) {
      const int32_t query = chain(parts, 4), key = chain(parts, 4);
      scores = ops.add(kOther, pair(Kind::kMul, query, key));
    } else {
      const int32_t query = chain(parts, 6), key = chain(parts, 6);
      scores = chain(pair(kOther, query, key), 3);
    }
    scores = ops.add(Kind::kSoftmax, ops.add(Kind::kMul, scores));
    const int32_t weights = chain(scores, 4);
    const int32_t heads = chain(pair(kOther, weights, chain(parts, 6)), 4);
    int32_t mapped;
    if (narrow) {
      const int32_t two = chain(heads, 2);
      const int32_t product = pair(kOther, two, ops.add(kOther, -1, out));
      mapped = ops.add(Kind::kAdd, ops.add(kOther, product), out + 1);
    } else {
      mapped = linear_on_tokens(ops.add(kOther, ops.add(Kind::kClone, heads)), out);
    }
    const int32_t attended = pair(Kind::kAdd, mapped, tokens);
    const int32_t hidden =
        ops.add(kOther, linear_on_tokens(ops.add(kOther, attended, ln2), up));
    const int32_t result = pair(Kind::kAdd, linear_on_tokens(hidden, down), attended);
    return chain(result, 2);
  }

  int32_t operation(const OpSpec& op, int32_t x, int32_t param, bool odd, bool sliced) {
    switch (op.primitive) {
      case kSkipConnect: return op.halves ? factorized(x, param, odd) : x;
      case kMaxPool3x3: return ops.add(Kind::kMaxPool, x);
      case kAvgPool3x3: return ops.add(Kind::kAvgPool, x);
      case kCse: return cse(x, param, op.halves, sliced);
      case kMsa: return msa(x, param);
      case kSepConv3x3:
      case kSepConv5x5: return layers(x, "rccnrccn", param);
      case kDilConv3x3:
      case kDilConv5x5:
      case kConv7x1_1x7: return layers(x, "rccn", param);
      default: return layers(x, "rcn", param);
    }
  }

  int32_t preprocess(const PreprocessSpec& part, int32_t x, int32_t param) {
    switch (part.kind) {
      case Preprocess::kConv: return layers(x, "rcn", param);
      case Preprocess::kFactorized: return factorized(x, param, part.in_size % 2 == 1);
      case Preprocess::kStride: return chain(x, 2);
      default: return x;
    }
  }

  // Whether the result of an operation has gaps in memory; one pixel has none.
  static bool has_gaps(const OpSpec& op, int64_t size, bool sliced) {
    if (op.primitive == kSkipConnect && !op.halves) return sliced;
    return op.primitive == kCse && op.halves && size > 2;
  }

  int32_t concat(const CellSpec& cell, const std::vector<int32_t>& states) {
    std::vector<int32_t> parts;
    int32_t present = -1;
    for (const int32_t state : cell.concat) {
      parts.push_back(state < 0 ? -1 : states[state]);
      if (present < 0) present = parts.back();
    }
    if (std::find(parts.begin(), parts.end(), -1) != parts.end()) {
      const int32_t zeros = ops.add(Kind::kMul, present);
      std::replace(parts.begin(), parts.end(), -1, zeros);
    }
    return ops.add(Kind::kConcat, parts.data(), int32_t(parts.size()));
  }

  int32_t cell(const CellSpec& cell, int32_t block, const int32_t (&inputs)[2]) {
    // -1 where there is no such state; and which states are slices with gaps in memory.
    std::vector<int32_t> states;
    std::vector<char> sliced;
    for (int side = 0; side < 2; ++side) {
      const PreprocessSpec& part = cell.preprocess[side];
      const bool there = part.alive && inputs[side] >= 0;
      sliced.push_back(there && part.kind == Preprocess::kStride && cell.size > 1);
      states.push_back(there ? preprocess(part, inputs[side], params.block[block + side]) : -1);
    }
    for (size_t i = 0; i < cell.ops.size(); i += 2) {
      int32_t terms[2], count = 0;
      bool gaps = false;
      for (size_t position = i; position < i + 2; ++position) {
        const OpSpec& op = cell.ops[position];
        const int32_t x = states[op.source];
        if (!op.alive || x < 0) continue;
        const bool read = sliced[op.source];
        const int32_t param = params.block[block + 2 + position];
        terms[count++] = operation(op, x, param, cell.size % 2 == 1, read);
        gaps = has_gaps(op, cell.size, read);
      }
      sliced.push_back(count == 1 && gaps);
      states.push_back(count == 2 ? pair(Kind::kAdd, terms[0], terms[1]) : count ? terms[0] : -1);
    }
    return concat(cell, states);
  }

  void stem(int32_t (&outputs)[2]) {
    int32_t param = 0;
    if (spec.stem == Stem::kVit) {
      const int32_t patches = ops.add(kOther, -1, param++);
      outputs[0] = outputs[1] = ops.add(Kind::kAdd, patches, param);
    } else if (spec.stem == Stem::kSimple) {
      int32_t x = layers(-1, "cn", param);
      if (spec.pool) x = ops.add(Kind::kMaxPool, x);
      outputs[0] = outputs[1] = x;
    } else {
      outputs[0] = layers(-1, "cnrcnr", param);
      outputs[1] = layers(outputs[0], "cn", param);
    }
  }
};

}  // namespace

int32_t record_network(Ops& ops, const NetworkSpec& spec, const Params& params) {
  ops.clear();
  Recorder recorder{ops, spec, params};
  int32_t outputs[2];
  recorder.stem(outputs);
  for (size_t c = 0; c < spec.cells.size(); ++c) {
    const CellSpec& cell = spec.cells[c];
    const int32_t x = cell.alive ? recorder.cell(cell, params.cell_block[c], outputs) : -1;
    outputs[0] = outputs[1];
    outputs[1] = x;
  }
  int32_t x = outputs[1];
  if (spec.glob_avg) x = ops.add(Kind::kMean, x);
  x = ops.add(kOther, x);
  int32_t weight = params.block[params.block.size() - 2];
  for (size_t layer = 0; layer + 1 < spec.classifier.size(); ++layer, weight += 2) {
    if (layer) x = ops.add(kOther, x);
    x = recorder.linear(x, weight);
  }
  return x;
}

}  // namespace ghn::deepnets
