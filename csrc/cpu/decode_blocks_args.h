// The arguments of decode_blocks, checked.
#pragma once

#include <vector>

#include "../common/checks.h"
#include "decode_blocks_layout.h"

namespace ghn {

constexpr size_t kGroupNumbers = 6;  // of a group: decoder, out, in, height, width, count

struct DecodeLayer {
  Tensor weight, bias;
  int64_t outputs = 0, inputs = 0;
};

inline DecodeLayer decode_layer(TensorList weights, size_t index, const char* name) {
  DecodeLayer layer{weights[index].contiguous(), weights[index + 1].contiguous()};
  for (const Tensor& tensor : {layer.weight, layer.bias}) {
    check_device(tensor, kCPU, name);
    check_dtype(tensor, kFloat, name);
  }
  GHN_CHECK(layer.weight.dim() == 2, name, ": got a weight of shape ", layer.weight.sizes(),
            ", needs (outputs, inputs)");
  layer.outputs = layer.weight.size(0);
  layer.inputs = layer.weight.size(1);
  check_shape(layer.bias, {layer.outputs}, name);
  GHN_CHECK(layer.outputs > 0 && layer.inputs > 0, name, ": got a weight of shape ",
            layer.weight.sizes());
  return layer;
}

// The layers, and the sizes that follow from them.
struct DecodeLayers {
  DecodeLayer expand, hidden, output, head_weight, first, last, head_bias;
  int64_t size = 1, out, in, channels;

  DecodeLayers(TensorList weights, int64_t width) {
    GHN_CHECK(weights.size() == 14, "weights: got ", weights.size(),
              " tensors, needs 14: weight and bias of seven layers");
    expand = decode_layer(weights, 0, "weights of expand");
    hidden = decode_layer(weights, 2, "weights of hidden");
    output = decode_layer(weights, 4, "weights of output");
    head_weight = decode_layer(weights, 6, "weights of the classifier's weight");
    first = decode_layer(weights, 8, "weights of the first layer of vectors");
    last = decode_layer(weights, 10, "weights of the last layer of vectors");
    head_bias = decode_layer(weights, 12, "weights of the classifier's bias");
    while (hidden.inputs * (size + 1) * (size + 1) <= expand.outputs) ++size;
    out = head_weight.inputs;
    in = output.outputs / out;
    channels = last.outputs / 2;
    const bool fit = hidden.inputs * size * size == expand.outputs && expand.inputs == width &&
                     output.inputs == hidden.outputs && out * in == output.outputs &&
                     first.inputs == width && last.inputs == first.outputs &&
                     2 * channels == last.outputs && head_bias.inputs == channels &&
                     head_bias.outputs == head_weight.outputs;
    GHN_CHECK(fit, "weights: the layers do not fit each other or x of width ", width);
  }
};

// A copy, so that what is checked is what is used.
inline std::vector<int64_t> read_nodes(const Tensor& nodes) {
  check_device(nodes, kCPU, "nodes");
  check_dtype(nodes, kLong, "nodes");
  GHN_CHECK(nodes.dim() == 1, "nodes: got shape ", nodes.sizes(), ", needs one dimension");
  const Tensor list = nodes.contiguous();
  const int64_t* data = list.const_data_ptr<int64_t>();
  return {data, data + list.numel()};
}

inline std::vector<DecodeGroup> read_groups(IntArrayRef numbers, const std::vector<int64_t>& node,
                                            const DecodeLayers& layers, int64_t num_nodes) {
  const int64_t num = int64_t(node.size());
  GHN_CHECK(numbers.size() % kGroupNumbers == 0, "groups: got ", numbers.size(),
            " numbers, needs six for each group");
  std::vector<DecodeGroup> groups;
  int64_t first = 0;
  for (size_t g = 0; g < numbers.size() / kGroupNumbers; ++g) {
    const int64_t* n = numbers.data() + g * kGroupNumbers;
    DecodeGroup group{n[0], n[1], n[2], n[3], n[4], n[5], first};
    GHN_CHECK(group.decoder >= kBlock && group.decoder <= kHeadBias, "groups[", g,
              "]: got decoder ", group.decoder, ", needs 0 to 3");
    GHN_CHECK(group.count >= 0 && group.count <= num - first, "groups[", g, "]: got ", group.count,
              " nodes, needs 0 to ", num - first, ", those that are left");
    const bool block = group.decoder == kBlock, head = group.decoder == kHeadWeight;
    if (head) group.out = layers.out, group.height = group.width = 1;
    const auto fits = [](int64_t size, int64_t most) { return size >= 1 && size <= most; };
    const bool fine = fits(group.out, layers.out) && fits(group.in, layers.in) &&
                      fits(group.height, layers.size) && fits(group.width, layers.size);
    GHN_CHECK(fine || !(block || head), "groups[", g, "]: got a block of shape (", group.out, ", ",
              group.in, ", ", group.height, ", ", group.width, "), needs at least 1 and at most (",
              layers.out, ", ", layers.in, ", ", layers.size, ", ", layers.size, ")");
    first += group.count;
    groups.push_back(group);
  }
  GHN_CHECK(first == num, "nodes: got ", num, ", needs ", first, ", as many as the groups count");
  for (int64_t i = 0; i < first; ++i) {
    GHN_CHECK(node[i] >= 0 && node[i] < num_nodes, "nodes[", i, "]: got ", node[i], ", needs 0 to ",
              num_nodes - 1);
  }
  return groups;
}

}  // namespace ghn
