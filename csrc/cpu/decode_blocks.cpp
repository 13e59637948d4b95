// From node embeddings to blocks of parameters, without gradients: all layers of the decoder for all
// groups of a plan, in one call.
//
// The floor is the products' arithmetic or, for few parameters, reading the weights of the last
// layer. So those are read once, as they are stored: threads share their out-channels, and all
// panels pass while a tile of them is in the cache. Outputs are written where the block has them.
//
// A sum runs over its inputs in ascending order, whatever else is computed with it: the same node
// gets the same numbers in every batch and with every number of threads.

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "../common/checks.h"
#include "../common/parallel.h"
#include "../common/torch_call.h"
#include "decode_blocks_args.h"
#include "decode_blocks_kernels.h"
#include "decode_blocks_layout.h"

namespace ghn {
namespace {

// Out-channels of a tile of the last layer's weights, and bytes of a tile: with a pair of panels it
// fits into a cache of one core.
constexpr int64_t kOutChannels = 8, kTileBytes = int64_t(3) << 17;
// Products that are worth a thread.
constexpr int64_t kGrain = int64_t(1) << 17;

// Rows of a layer's weights, to be multiplied with panel after panel.
class Rows {
 public:
  Rows(const DecodeKernel& kernel, const DecodeLayer& layer) : kernel_(kernel), layer_(layer) {}

  void add(int64_t row) {
    weight_.push_back(layer_.weight.const_data_ptr<float>() + row * layer_.inputs);
    bias_.push_back(layer_.bias.const_data_ptr<float>()[row]);
  }

  void add(int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) add(row);
  }

  // Calls take(r, count, values) for rows r .. r + count of those that were added, with the numbers
  // of row r + i and of panel p in values[(2 i + p) columns ..]. `second` may be null.
  template <class Take>
  void multiply(const float* first, const float* second, bool relu, Take take) const {
    alignas(64) float values[2 * DecodeKernel::kMostRows * DecodeKernel::kMostColumns];
    const int64_t all = int64_t(weight_.size());
    for (int64_t r = 0; r < all; r += kernel_.rows) {
      const int count = int(std::min<int64_t>(kernel_.rows, all - r));
      kernel_.product(weight_.data() + r, bias_.data() + r, count, layer_.inputs, first, second,
                      relu, values);
      take(r, count, values);
    }
  }

 private:
  const DecodeKernel& kernel_;
  const DecodeLayer& layer_;
  std::vector<const float*> weight_;
  std::vector<float> bias_;
};

// Panels of `inputs` numbers for each column; what no column uses stays unset.
struct Panels {
  int64_t columns, inputs;
  Tensor memory;
  float* data;

  Panels(int64_t count, int64_t inputs, int64_t columns)
      : columns(columns),
        inputs(inputs),
        memory(empty({count * inputs * columns}, kFloat)),
        data(memory.data_ptr<float>()) {}

  float* at(int64_t panel) { return data + panel * inputs * columns; }
};

void clear_rest(float* panel, int64_t inputs, int64_t columns, int64_t used) {
  for (int64_t k = 0; k < inputs; ++k) {
    std::fill(panel + k * columns + used, panel + (k + 1) * columns, 0.0f);
  }
}

// A panel of the embeddings of up to `columns` nodes.
template <class NodeOf>
void gather(const float* x, int64_t width, int64_t count, int64_t columns, NodeOf node_of,
            float* panel) {
  clear_rest(panel, width, columns, count);
  for (int64_t lane = 0; lane < count; ++lane) {
    const float* row = x + node_of(lane) * width;
    for (int64_t k = 0; k < width; ++k) panel[k * columns + lane] = row[k];
  }
}

// Rows of a layer that make a tile.
int64_t tile_rows(const DecodeLayer& layer) {
  return std::max<int64_t>(1, kTileBytes / (layer.inputs * int64_t(sizeof(float))));
}

int64_t grain(int64_t products_each) {
  return std::max<int64_t>(1, kGrain / std::max<int64_t>(products_each, 1));
}

// Rows of LENGTH numbers.
template <int LENGTH>
void copy_rows(const float* from, int64_t step_from, int64_t count, float* to, int64_t step) {
  for (int64_t n = 0; n < count; ++n, from += step_from, to += step) {
    std::memcpy(to, from, LENGTH * sizeof(float));
  }
}

using CopyRows = void (*)(const float*, int64_t, int64_t, float*, int64_t);

template <class Lengths>
constexpr std::array<CopyRows, Lengths::size()> kCopiesOf = {};
template <int... LENGTH>
constexpr std::array<CopyRows, sizeof...(LENGTH)> kCopiesOf<
    std::integer_sequence<int, LENGTH...>> = {&copy_rows<LENGTH>...};

// By length: sizes that are known are copied without a call.
template <int LARGEST>
constexpr auto kCopies = kCopiesOf<std::make_integer_sequence<int, LARGEST + 1>>;

class BlockDecoder {
 public:
  BlockDecoder(const DecodeLayers& layers, const DecodeLayout& layout, bool middle)
      : kernel_(decode_kernel()),
        layers_(layers),
        layout_(layout),
        middle_(middle),
        count_(int64_t(layout.panels.size())),
        expanded_(count_, layers.hidden.inputs, kernel_.columns),
        hidden_(count_, layers.hidden.outputs, kernel_.columns) {
    place_.reserve(layout.columns.size());
    for (const Column& column : layout.columns) {
      place_.push_back(expanded_.at(column.panel) + column.lane - expanded_.data);
    }
  }

  void run(const float* x) {
    if (count_ == 0) return;
    expand(x);
    hide();
    write();
  }

 private:
  // A linear layer per position, from nodes to columns.
  void expand(const float* x) {
    const int64_t channels = layers_.hidden.inputs, columns = kernel_.columns;
    std::vector<Panels> inputs;
    int64_t products = 0;
    for (const KernelSize& size : layout_.sizes) {
      const int64_t nodes = int64_t(size.nodes.size());
      Panels& panels = inputs.emplace_back((nodes + columns - 1) / columns, layers_.expand.inputs,
                                           columns);
      for (int64_t n = 0; n < nodes; n += columns) {
        gather(x, layers_.expand.inputs, std::min(columns, nodes - n), columns,
               [&](int64_t lane) { return size.nodes[size_t(n + lane)].node; },
               panels.at(n / columns));
      }
      products += nodes * size.height * size.width * layers_.expand.inputs;
    }
    for (int64_t p = 0; p < count_; ++p) {
      clear_rest(expanded_.at(p), channels, columns, layout_.panels[size_t(p)].used);
    }
    parallel_for(0, channels, grain(products), [&](int64_t begin, int64_t end) {
      for (size_t s = 0; s < layout_.sizes.size(); ++s) {
        expand_size(layout_.sizes[s], inputs[s], begin, end);
      }
    });
  }

  void expand_size(const KernelSize& size, Panels& inputs, int64_t begin, int64_t end) {
    const int64_t columns = kernel_.columns;
    const int64_t positions = size.height * size.width, side = layers_.size;
    const int64_t top = middle_ ? side / 2 - size.height / 2 : 0;
    const int64_t left = middle_ ? side / 2 - size.width / 2 : 0;
    Rows rows(kernel_, layers_.expand);
    for (int64_t c = begin; c < end; ++c) {
      for (int64_t h = 0; h < size.height; ++h) {
        const int64_t row = (c * side + top + h) * side + left;
        rows.add(row, row + size.width);
      }
    }
    const int64_t nodes = int64_t(size.nodes.size());
    for (int64_t n = 0; n < nodes; n += 2 * columns) {
      const bool two = nodes - n > columns;
      const int64_t used = std::min(2 * columns, nodes - n);
      int64_t c = begin, p = 0;  // of the row that comes next
      rows.multiply(inputs.at(n / columns), two ? inputs.at(n / columns + 1) : nullptr, true,
                    [&](int64_t, int count, const float* values) {
        for (int i = 0; i < count; ++i, values += 2 * columns) {
          for (int64_t lane = 0; lane < used; ++lane) {
            const int64_t column = size.nodes[size_t(n + lane)].first + p;
            expanded_.data[place_[size_t(column)] + c * columns] = values[lane];
          }
          if (++p == positions) p = 0, ++c;
        }
      });
    }
  }

  void hide() {
    const DecodeLayer& layer = layers_.hidden;
    const int64_t columns = kernel_.columns, tile = tile_rows(layer);
    const int64_t products = layer.inputs * columns * count_;
    parallel_for(0, layer.outputs, grain(products), [&](int64_t begin, int64_t end) {
      for (int64_t first = begin; first < end; first += tile) {
        Rows rows(kernel_, layer);
        rows.add(first, std::min(first + tile, end));
        for (int64_t p = 0; p < count_; p += 2) {
          const bool two = p + 1 < count_;
          rows.multiply(expanded_.at(p), two ? expanded_.at(p + 1) : nullptr, true,
                        [&](int64_t r, int count, const float* values) {
            for (int64_t i = 0; i < (two ? 2 : 1) * count; ++i) {
              const int64_t row = two ? i / 2 : i, panel = two ? i % 2 : 0;
              std::memcpy(hidden_.at(p + panel) + (first + r + row) * columns,
                          values + (2 * row + panel) * columns, size_t(columns) * sizeof(float));
            }
          });
        }
      }
    });
  }

  // The last layer. Thread s of n takes parts s, s + n, ... of the out-channels: groups of few
  // channels have the first parts alone.
  void write() {
    int64_t products = 0, in = 0;
    for (const Panel& panel : layout_.panels) {
      products += panel.out * panel.in * kernel_.columns * layers_.output.inputs;
      in = std::max(in, panel.in);
    }
    const int64_t parts = (layers_.out + kOutChannels - 1) / kOutChannels;
    const int64_t shares =
        std::clamp<int64_t>(products / kGrain, 1, std::min<int64_t>(num_threads(), parts));
    const int64_t step = std::max<int64_t>(4, tile_rows(layers_.output) / kOutChannels);
    parallel_for(0, shares, 1, [&](int64_t begin, int64_t end) {
      std::vector<Part> wanted;
      for (int64_t share = begin; share < end; ++share) {
        for (int64_t part = share; part < parts; part += shares) {
          for (int64_t i = 0; i < in; i += step) write_tile(part * kOutChannels, i, step, wanted);
        }
      }
    });
  }

  // What a panel takes of a tile: its first `out` by `in` outputs.
  struct Part {
    int64_t out, in, panel;
  };

  // Of the tile of weights at (first_out, first_in), all panels.
  void write_tile(int64_t first_out, int64_t first_in, int64_t step, std::vector<Part>& wanted) {
    wanted.clear();
    for (int64_t p = 0; p < count_; ++p) {
      const Panel& panel = layout_.panels[size_t(p)];
      if (panel.out > first_out && panel.in > first_in) {
        wanted.push_back({std::min(panel.out - first_out, kOutChannels),
                          std::min(panel.in - first_in, step), p});
      }
    }
    // Panels that take the same rows are multiplied in pairs.
    std::stable_sort(wanted.begin(), wanted.end(), [](const Part& a, const Part& b) {
      return std::pair(a.out, a.in) > std::pair(b.out, b.in);
    });
    for (size_t k = 0; k < wanted.size();) {
      const auto [outs, ins, unused] = wanted[k];
      Rows rows(kernel_, layers_.output);
      for (int64_t o = first_out; o < first_out + outs; ++o) {
        rows.add(o * layers_.in + first_in, o * layers_.in + first_in + ins);
      }
      const auto same = [&](size_t at) {
        return at < wanted.size() && wanted[at].out == outs && wanted[at].in == ins;
      };
      while (same(k)) {
        const int64_t a = wanted[k++].panel, b = same(k) ? wanted[k++].panel : -1;
        rows.multiply(hidden_.at(a), b < 0 ? nullptr : hidden_.at(b), false,
                      [&](int64_t r, int count, const float* values) {
          // Of one out-channel at a time.
          for (int64_t end = r + count, o = r / ins; r < end; ++o) {
            const int64_t here = std::min((o + 1) * ins, end) - r, i = first_in + r - o * ins;
            put(a, first_out + o, i, here, values);
            if (b >= 0) put(b, first_out + o, i, here, values + kernel_.columns);
            r += here;
            values += here * 2 * kernel_.columns;
          }
        });
      }
    }
  }

  // Outputs (o, i) to (o, i + count) of a panel.
  void put(int64_t panel, int64_t o, int64_t i, int64_t count, const float* values) const {
    const int64_t step = 2 * kernel_.columns;
    for (const Run& run : layout_.panels[size_t(panel)].runs) {
      const int64_t inside = std::min(run.in - i, count);
      if (o >= run.out || inside <= 0) continue;
      const float* from = values + run.lane;
      float* to = run.to + (o * run.in + i) * run.step;
      if (run.step == 1) {
        for (int64_t n = 0; n < inside; ++n) to[n] = from[n * step];
      } else {
        kCopies<DecodeKernel::kMostColumns>[size_t(run.length)](from, step, inside, to, run.step);
      }
    }
  }

  const DecodeKernel kernel_;
  const DecodeLayers& layers_;
  const DecodeLayout& layout_;
  const bool middle_;
  const int64_t count_;
  Panels expanded_, hidden_;
  std::vector<int64_t> place_;  // of each column's first number in expanded_
};

// (count, out, in) -> ReLU -> (count, classes, in), a linear layer over the out-channels.
void classify_weight(const DecodeLayer& layer, const float* blocks, int64_t count, int64_t in,
                     float* to) {
  for (int64_t n = 0; n < count; ++n, blocks += layer.inputs * in) {
    const float* weight = layer.weight.const_data_ptr<float>();
    for (int64_t c = 0; c < layer.outputs; ++c, weight += layer.inputs, to += in) {
      std::fill_n(to, in, layer.bias.const_data_ptr<float>()[c]);
      for (int64_t o = 0; o < layer.inputs; ++o) {
        const float* x = blocks + o * in;
        for (int64_t i = 0; i < in; ++i) to[i] += weight[o] * (x[i] < 0.0f ? 0.0f : x[i]);
      }
    }
  }
}

// ReLU and a linear layer of one vector.
void classify_bias(const DecodeLayer& layer, const float* x, float* to) {
  const float* weight = layer.weight.const_data_ptr<float>();
  for (int64_t c = 0; c < layer.outputs; ++c, weight += layer.inputs) {
    float sum = layer.bias.const_data_ptr<float>()[c];
    for (int64_t k = 0; k < layer.inputs; ++k) sum += weight[k] * (x[k] < 0.0f ? 0.0f : x[k]);
    to[c] = sum;
  }
}

// Vectors (count, 2, channels) of a group, or of a classifier's biases (count, classes).
void decode_vectors(const DecodeLayers& layers, const DecodeGroup& group, const int64_t* nodes,
                    const float* x, float* to) {
  const DecodeKernel kernel = decode_kernel();
  const int64_t columns = kernel.columns, outputs = layers.last.outputs;
  Rows first(kernel, layers.first), last(kernel, layers.last);
  first.add(0, layers.first.outputs);
  last.add(0, outputs);
  const int64_t panels = (group.count + columns - 1) / columns;
  const int64_t products = columns * (outputs + layers.first.inputs) * layers.first.outputs;
  parallel_for(0, panels, grain(products), [&](int64_t begin, int64_t end) {
    Panels inputs(1, layers.first.inputs, columns), hidden(1, layers.first.outputs, columns);
    std::vector<float> vectors(size_t(columns * outputs));
    for (int64_t p = begin; p < end; ++p) {
      const int64_t n = p * columns, used = std::min(columns, group.count - n);
      gather(x, layers.first.inputs, used, columns,
             [&](int64_t lane) { return nodes[group.first + n + lane]; }, inputs.at(0));
      first.multiply(inputs.at(0), nullptr, true, [&](int64_t r, int count, const float* values) {
        for (int i = 0; i < count; ++i) {
          std::memcpy(hidden.at(0) + (r + i) * columns, values + 2 * i * columns,
                      size_t(columns) * sizeof(float));
        }
      });
      const bool bias = group.decoder == kHeadBias;
      float* at = bias ? vectors.data() : to + n * outputs;
      last.multiply(hidden.at(0), nullptr, false, [&](int64_t r, int count, const float* values) {
        for (int64_t lane = 0; lane < used; ++lane) {
          for (int i = 0; i < count; ++i) {
            at[lane * outputs + r + i] = values[2 * i * columns + lane];
          }
        }
      });
      for (int64_t lane = 0; bias && lane < used; ++lane) {
        classify_bias(layers.head_bias, at + lane * outputs + layers.channels,
                      to + (n + lane) * layers.head_bias.outputs);
      }
    }
  });
}

}  // namespace

std::vector<Tensor> decode_blocks_cpu(const Tensor& x, const Tensor& nodes, IntArrayRef numbers,
                                      TensorList weights, bool middle) {
  check_device(x, kCPU, "x");
  check_dtype(x, kFloat, "x");
  GHN_CHECK(x.dim() == 2, "x: got shape ", x.sizes(), ", needs (N, C)");
  const DecodeLayers layers(weights, x.size(1));
  const Tensor features = x.contiguous();
  const std::vector<int64_t> node_list = read_nodes(nodes);
  const std::vector<DecodeGroup> groups = read_groups(numbers, node_list, layers, x.size(0));
  const int64_t classes = layers.head_bias.outputs;
  std::vector<Tensor> result, before_head(groups.size());
  std::vector<float*> to;
  for (size_t g = 0; g < groups.size(); ++g) {
    const DecodeGroup& group = groups[g];
    switch (group.decoder) {
      case kBlock:
        result.push_back(
            empty({group.count, group.out, group.in, group.height, group.width}, x.options()));
        break;
      case kVector:
        result.push_back(empty({group.count, 2, layers.channels}, x.options()));
        break;
      case kHeadWeight:
        result.push_back(empty({group.count, classes, group.in}, x.options()));
        before_head[g] = empty({group.count, layers.out, group.in}, x.options());
        break;
      default:
        result.push_back(empty({group.count, classes}, x.options()));
    }
    const bool headed = before_head[g].defined();
    to.push_back((headed ? before_head[g] : result.back()).data_ptr<float>());
  }
  const int64_t* node = node_list.data();
  const float* data = features.const_data_ptr<float>();
  const DecodeLayout layout = lay_out(groups, node, to, decode_kernel().columns);
  BlockDecoder(layers, layout, middle).run(data);
  for (size_t g = 0; g < groups.size(); ++g) {
    const DecodeGroup& group = groups[g];
    if (group.decoder == kHeadWeight) {
      classify_weight(layers.head_weight, to[g], group.count, group.in,
                      result[g].data_ptr<float>());
    } else if (group.decoder != kBlock) {
      decode_vectors(layers, group, node, data, to[g]);
    }
  }
  return result;
}

STABLE_TORCH_LIBRARY_IMPL(ghn_fast, CPU, m) { m.impl("decode_blocks", boxed<&decode_blocks_cpu>); }

}  // namespace ghn
