// A network of DeepNets-1M: its packed record, what it builds, and its parameters.
//
// The same steps as in ghn_fast/deepnets/architectures (record, spec, parameters), which define the
// result; names are the same here and there, and a test compares the enumerations.
#pragma once

#include <cstdint>
#include <vector>

namespace ghn::deepnets {

// Indices of primitives.PRIMITIVES.
enum Primitive : uint8_t {
  kNone, kMaxPool3x3, kAvgPool3x3, kSkipConnect, kSepConv3x3, kSepConv5x5, kDilConv3x3,
  kDilConv5x5, kConv1x1, kConv7x1_1x7, kConv3x3, kConv5x5, kConv7x7, kMsa, kCse, kPrimitives
};

// Indices of graph.NODE_TYPES; parameters without a node of their own have none.
enum NodeType : int8_t {
  kNoType = -1, kTypeMaxPool, kTypeAvgPool, kTypeSepConv, kTypeDilConv, kTypeConv, kTypeMsa,
  kTypeCse, kTypeSum, kTypeConcat, kTypeInput, kTypeBias, kTypeBn, kTypeLn, kTypePosEnc,
  kTypeGlobAvg
};

// Heads of self-attention, and the least size of images that get the stems for ImageNet.
constexpr int64_t kHeads = 8, kLargeImage = 64;

struct Gene {
  uint8_t primitive, source;
};

struct Cell {
  std::vector<Gene> genes;
  std::vector<uint8_t> concat;
};

// A configuration, read from its record (docs/deepnets.md has the fields).
struct Net {
  Cell normal, reduce;
  int64_t n_cells, channels, fc_dim, fc_layers, kernel, c_mult;
  bool imagenet_stem, stem_pool, norm, preproc, glob_avg, vit;

  // Raises ValueError if the bytes are not a record; `index` is for the message.
  static Net read(const uint8_t* data, int64_t size, int64_t index);

  bool reduction(int64_t cell) const {
    return cell > 0 && (cell == n_cells / 3 || cell == 2 * n_cells / 3);
  }
  const Cell& cell(int64_t index) const { return reduction(index) ? reduce : normal; }
};

struct OpSpec {
  uint8_t primitive, source;
  bool halves, alive;
};

enum class Preprocess : uint8_t { kConv, kFactorized, kStride, kIdentity };

struct PreprocessSpec {
  Preprocess kind;
  int64_t in_channels, in_size;
  bool alive;
};

struct CellSpec {
  int64_t channels, size;
  PreprocessSpec preprocess[2];
  std::vector<OpSpec> ops;
  std::vector<int32_t> concat;  // -1 for zeros
  bool alive;
};

enum class Stem : uint8_t { kVit, kSimple, kImagenet };

struct NetworkSpec {
  bool norm, pool, glob_avg, connected;
  Stem stem;
  int64_t channels, kernel, sizes[2];
  std::vector<CellSpec> cells;
  std::vector<int64_t> classifier;

  static NetworkSpec of(const Net& net, int64_t num_classes, int64_t image_size);
};

// Names travel as numbers: cell (or layer of the classifier) << 15 | slot << 5 | suffix. Slots 0
// and 1 are the preprocessing of a cell, from 2 on its operations.
constexpr int32_t kSuffixBits = 5, kSlotBits = 10;
constexpr int32_t kStemSlot = (1 << kSlotBits) - 2, kClassifierSlot = (1 << kSlotBits) - 1;

struct Param {
  int32_t name;
  int64_t shape[4];
  int8_t dims;
  NodeType type;
  bool linear;    // weight of a linear layer
  int32_t shift;  // for the scale of a norm layer the parameter after it, else -1
};

// Parameters in the order of the module's, in blocks: the stem; of each cell two preprocessings
// and its operations; the classifier.
struct Params {
  std::vector<Param> all;
  std::vector<int32_t> block;       // first parameter of each block, and the number at the end
  std::vector<int32_t> cell_block;  // first block of each cell

  static Params of(const NetworkSpec& spec);
};

// Number of elements; raises ValueError above 2^62.
int64_t count_elements(const Params& params, int64_t index);

}  // namespace ghn::deepnets
