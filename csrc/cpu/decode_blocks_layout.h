// Where the decoder's columns lie in panels, and where its outputs go.
//
// A column is one position of one block. A panel takes the rows of the last layer's weights that
// any of its columns needs, so blocks with the same channels are side by side, whatever their
// positions; what they leave free in a panel is for blocks that need few rows beside its own.
#pragma once

#include <cstdint>
#include <vector>

namespace ghn {

enum DecoderKind : int64_t { kBlock = 0, kVector = 1, kHeadWeight = 2, kHeadBias = 3 };

// A group of parameters: `count` blocks of one shape, of nodes[first ..].
struct DecodeGroup {
  int64_t decoder, out, in, height, width, count, first;

  int64_t positions() const { return height * width; }
};

// Columns side by side in one panel whose outputs are side by side, too: output (o, i), of `out` by
// `in`, goes to to[(o in + i) step ..].
struct Run {
  int64_t lane, length, step, out, in;
  float* to;
};

// Columns that are multiplied together, with the weights of `out` by `in` outputs.
struct Panel {
  int64_t used = 0, out = 0, in = 0;
  std::vector<Run> runs;
};

struct Column {
  int64_t panel, lane;
};

// A node that is decoded at positions height x width: its columns begin at columns[first].
struct Decoded {
  int64_t node, first;
};

struct KernelSize {
  int64_t height, width;
  std::vector<Decoded> nodes;
};

struct DecodeLayout {
  std::vector<Panel> panels;
  std::vector<Column> columns;
  std::vector<KernelSize> sizes;
};

// The layout of all groups that are decoded to blocks; `to` has for each group where its blocks go,
// (count, out, in, height, width).
DecodeLayout lay_out(const std::vector<DecodeGroup>& groups, const int64_t* nodes,
                     const std::vector<float*>& to, int64_t columns);

}  // namespace ghn
