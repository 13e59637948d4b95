// Where the decoder's columns lie in panels, and where its outputs go.
//
// A column is one position of one block. Blocks with the same number of channels are side by side,
// whatever their positions, so that few panels are filled partly; the columns of all of them take
// the same rows of the last layer's weights.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace ghn {

enum DecoderKind : int64_t { kBlock = 0, kVector = 1, kHeadWeight = 2, kHeadBias = 3 };

// A group of parameters: `count` blocks of one shape, of nodes[first ..].
struct DecodeGroup {
  int64_t decoder, out, in, height, width, count, first;

  int64_t positions() const { return height * width; }
};

// Columns side by side in one panel whose outputs are side by side, too. Output row r goes to
// to[r step ..].
struct Run {
  int64_t lane, length, step;
  float* to;
};

struct Panel {
  int64_t used = 0;
  std::vector<Run> runs;
};

// Blocks with the same number of channels: they are in `panels` [first, last).
struct ChannelClass {
  int64_t out, in, first, last;
};

// A node that is decoded at positions height x width: its columns begin at `lane` of `panel`.
struct Decoded {
  int64_t node, panel, lane;
};

struct KernelSize {
  int64_t height, width;
  std::vector<Decoded> nodes;
};

struct DecodeLayout {
  std::vector<Panel> panels;
  std::vector<ChannelClass> classes;
  std::vector<KernelSize> sizes;
};

// The layout of all groups that are decoded to blocks; `to` has for each group where its blocks go,
// (count, out, in, height, width).
DecodeLayout lay_out(const std::vector<DecodeGroup>& groups, const int64_t* nodes,
                     const std::vector<float*>& to, int64_t columns);

}  // namespace ghn
