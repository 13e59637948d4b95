// Parameters of a network: names (as numbers), shapes and node types, in the module's order.
#include "network.h"

namespace ghn::deepnets {
namespace {

// Positions in the tables of names in ghn_fast/deepnets/graphs/derive.py.
enum Suffix : int32_t {
  kOp1, kOp2, kOp2Bias, kOp3, kOp3Bias, kOp5, kOp6, kOp7, kOp7Bias, kConv1, kConv2, kBn,
  kBnBias, kFc1, kFc1Bias, kFc2, kFc2Bias, kToQkv, kToOut0, kToOut0Bias, kLn1, kLn1Bias, kLn2,
  kLn2Bias, kFfNet0, kFfNet0Bias, kFfNet3, kFfNet3Bias
};
enum StemName : int32_t {
  kPatches, kPosEnc, kStem0, kStem1, kStem1Bias, kStem00, kStem01, kStem01Bias, kStem03, kStem04,
  kStem04Bias, kStem11, kStem12, kStem12Bias
};

struct Builder {
  Params& result;
  bool norm;
  int32_t prefix = 0;

  void place(int64_t cell, int32_t slot) {
    prefix = int32_t(cell) << (kSlotBits + kSuffixBits) | slot << kSuffixBits;
    result.block.push_back(int32_t(result.all.size()));
  }

  void add(int32_t suffix, NodeType type, int8_t dims, int64_t a, int64_t b = 1, int64_t c = 1,
           int64_t d = 1) {
    result.all.push_back({prefix | suffix, {a, b, c, d}, dims, type, false, -1});
  }

  void conv(int32_t suffix, int64_t out, int64_t in, int64_t height, int64_t width,
            NodeType type = kTypeConv) {
    add(suffix, type, 4, out, in, height, width);
  }

  // A weight and the bias, whose suffix is the next one.
  void linear(int32_t suffix, int64_t width, int64_t out, bool bias = true) {
    add(suffix, kTypeConv, 2, out, width);
    result.all.back().linear = true;
    if (bias) add(suffix + 1, kTypeBias, 1, out);
  }

  // The node of the scale yields the shift, too.
  void scale_and_shift(int32_t suffix, int64_t channels, NodeType type) {
    add(suffix, type, 1, channels);
    result.all.back().shift = int32_t(result.all.size());
    add(suffix + 1, kNoType, 1, channels);
  }

  void bn(int32_t suffix, int64_t channels) {
    if (norm) scale_and_shift(suffix, channels, kTypeBn);
  }

  void factorized(int64_t in, int64_t out) {
    conv(kConv1, out / 2, in, 1, 1);
    conv(kConv2, out / 2, in, 1, 1);
    bn(kBn, out);
  }

  // Depthwise and pointwise convolution, norm. With one channel, there is one group: an ordinary
  // convolution.
  void depthwise(int32_t suffix, int32_t bn_suffix, int64_t channels, int64_t kernel,
                 NodeType type) {
    conv(suffix, channels, 1, kernel, kernel, channels > 1 ? type : kTypeConv);
    conv(suffix + 1, channels, channels, 1, 1);
    bn(bn_suffix, channels);
  }

  void stem(const NetworkSpec& spec) {
    const int64_t channels = spec.channels, kernel = spec.kernel, half = channels / 2;
    place(0, kStemSlot);
    if (spec.stem == Stem::kVit) {
      conv(kPatches, channels, 3, kernel, kernel);
      add(kPosEnc, kTypePosEnc, 4, 1, channels, spec.sizes[1], spec.sizes[1]);
    } else if (spec.stem == Stem::kSimple) {
      conv(kStem0, channels, 3, kernel, kernel);
      bn(kStem1, channels);
    } else {
      conv(kStem00, half, 3, kernel, kernel);
      bn(kStem01, half);
      conv(kStem03, channels, half, 3, 3);
      bn(kStem04, channels);
      conv(kStem11, channels, channels, 3, 3);
      bn(kStem12, channels);
    }
  }

  void preprocess(const PreprocessSpec& spec, int64_t channels) {
    if (spec.kind == Preprocess::kConv) {
      conv(kOp1, channels, spec.in_channels, 1, 1);
      bn(kOp2, channels);
    } else if (spec.kind == Preprocess::kFactorized) {
      factorized(spec.in_channels, channels);
    }
  }

  void attention(int64_t channels) {
    const int64_t width = channels / kHeads * kHeads;
    linear(kToQkv, channels, 3 * width, false);
    linear(kToOut0, width, channels);
    scale_and_shift(kLn1, channels, kTypeLn);
    scale_and_shift(kLn2, channels, kTypeLn);
    linear(kFfNet0, channels, channels);
    linear(kFfNet3, channels, channels);
  }

  void op(const OpSpec& spec, int64_t channels) {
    const auto square = [&](int64_t kernel) {
      conv(kOp1, channels, channels, kernel, kernel);
      bn(kOp2, channels);
    };
    switch (spec.primitive) {
      case kSepConv3x3:
      case kSepConv5x5: {
        const int64_t kernel = spec.primitive == kSepConv3x3 ? 3 : 5;
        // op.1, op.2, op.3 and op.5, op.6, op.7.
        depthwise(kOp1, kOp3, channels, kernel, kTypeSepConv);
        depthwise(kOp5, kOp7, channels, kernel, kTypeSepConv);
        break;
      }
      case kDilConv3x3:
      case kDilConv5x5:
        depthwise(kOp1, kOp3, channels, spec.primitive == kDilConv3x3 ? 3 : 5, kTypeDilConv);
        break;
      case kConv1x1: square(1); break;
      case kConv3x3: square(3); break;
      case kConv5x5: square(5); break;
      case kConv7x7: square(7); break;
      case kConv7x1_1x7:
        conv(kOp1, channels, channels, 1, 7);
        conv(kOp2, channels, channels, 7, 1);
        bn(kOp3, channels);
        break;
      case kSkipConnect:
        if (spec.halves) factorized(channels, channels);
        break;
      case kCse:
        linear(kFc1, channels, channels / 2);
        linear(kFc2, channels / 2, channels);
        break;
      case kMsa: attention(channels); break;
      default: break;
    }
  }
};

}  // namespace

Params Params::of(const NetworkSpec& spec) {
  Params params;
  params.all.reserve(16 + 32 * spec.cells.size());
  Builder builder{params, spec.norm};
  builder.stem(spec);
  for (int64_t c = 0; c < int64_t(spec.cells.size()); ++c) {
    const CellSpec& cell = spec.cells[c];
    params.cell_block.push_back(int32_t(params.block.size()));
    for (int side = 0; side < 2; ++side) {
      builder.place(c, side);
      builder.preprocess(cell.preprocess[side], cell.channels);
    }
    for (int64_t i = 0; i < int64_t(cell.ops.size()); ++i) {
      builder.place(c, 2 + int32_t(i));
      builder.op(cell.ops[i], cell.channels);
    }
  }
  builder.place(0, kClassifierSlot);
  for (int64_t i = 0; i + 1 < int64_t(spec.classifier.size()); ++i) {
    builder.prefix = int32_t(i) << (kSlotBits + kSuffixBits) | kClassifierSlot << kSuffixBits;
    builder.linear(0, spec.classifier[i], spec.classifier[i + 1]);
  }
  params.block.push_back(int32_t(params.all.size()));
  return params;
}

}  // namespace ghn::deepnets
