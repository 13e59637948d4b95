// Records of networks, and what a record describes.
#include "network.h"

#include <algorithm>

#include "../common/checks.h"

namespace ghn::deepnets {
namespace {

// Steps of all cells of a network; deep ones have 36 cells, dense ones 10 steps.
constexpr int64_t kMostSteps = 8192;

constexpr int64_t kHead = 24;

int64_t number(const uint8_t* data, int bytes) {
  int64_t value = 0;
  for (int i = bytes; i-- > 0;) value = value << 8 | data[i];
  return value;
}

void read_genes(Cell& cell, const uint8_t* data, int64_t steps, int64_t index, const char* name) {
  cell.genes.resize(2 * steps);
  for (int64_t i = 0; i < 2 * steps; ++i) {
    const Gene gene{data[2 * i], data[2 * i + 1]};
    GHN_CHECK(gene.primitive < kPrimitives && gene.source < 2 + i / 2, "records: ", index, ": ",
              name, "[", i, "]: got primitive ", int(gene.primitive), " of state ",
              int(gene.source), ", needs a primitive below ", int(kPrimitives),
              " and a state below ", 2 + i / 2);
    cell.genes[i] = gene;
  }
}

void read_concat(Cell& cell, const uint8_t* data, int64_t count, int64_t index, const char* name) {
  cell.concat.assign(data, data + count);
  const int64_t states = 2 + int64_t(cell.genes.size()) / 2;
  for (int64_t i = 0; i < count; ++i) {
    const bool repeated = std::find(data, data + i, data[i]) != data + i;
    GHN_CHECK(data[i] >= 2 && data[i] < states && !repeated, "records: ", index, ": ", name,
              "_concat: got state ", int(data[i]), ", needs distinct ones from 2 to ", states - 1);
  }
}

bool uses(const Net& net, uint8_t primitive) {
  const auto is = [=](const Gene& gene) { return gene.primitive == primitive; };
  return std::any_of(net.normal.genes.begin(), net.normal.genes.end(), is) ||
         std::any_of(net.reduce.genes.begin(), net.reduce.genes.end(), is);
}

// Whether a factorized reduction would have to yield an odd number of channels.
bool splits_odd_channels(const Net& net) {
  const auto skips = [](const Gene& g) { return g.primitive == kSkipConnect && g.source < 2; };
  const bool any = std::any_of(net.reduce.genes.begin(), net.reduce.genes.end(), skips);
  int64_t channels = net.channels;
  for (int64_t cell = 0; cell < net.n_cells; ++cell) {
    const bool reduction = net.reduction(cell);
    if (reduction) channels *= net.c_mult;
    const bool halved = cell ? net.reduction(cell - 1) : net.imagenet_stem;
    if (channels % 2 && ((halved && net.preproc) || (reduction && any))) return true;
  }
  return false;
}

// As NetworkConfig does.
void check_channels(const Net& net, int64_t index) {
  const bool wide = std::max(net.normal.concat.size(), net.reduce.concat.size()) > 1;
  GHN_CHECK(net.preproc || (!wide && net.c_mult == 1), "records: ", index,
            ": preproc: got false, needs true when a cell concatenates several states or "
            "C_mult is above 1");
  const bool halved = uses(net, kCse) || (net.imagenet_stem && !net.vit);
  const int64_t least = net.vit ? kHeads : halved ? 2 : 1;
  GHN_CHECK(net.channels >= least, "records: ", index, ": C: got ", net.channels,
            ", needs at least ", least);
  GHN_CHECK(net.vit || !splits_odd_channels(net), "records: ", index, ": C: got ", net.channels,
            ", needs an even number: layers that halve the size split "
            "channels");
}

void stem_spec(NetworkSpec& spec, const Net& net, int64_t image_size) {
  const bool large = image_size >= kLargeImage;
  spec.pool = false;
  spec.channels = net.channels;
  spec.kernel = net.kernel;
  if (net.vit) {
    // Patches of 16x16 without padding, or of 3x3 with a border of one.
    spec.stem = Stem::kVit;
    spec.kernel = large ? 16 : 3;
    spec.sizes[0] = spec.sizes[1] = large ? image_size / 16 : (image_size - 1) / 3 + 1;
    GHN_CHECK(spec.sizes[1] >= 2, "image_size: got ", image_size,
              ", needs at least 4 for networks with msa");
  } else if (net.imagenet_stem) {
    spec.stem = Stem::kImagenet;
    spec.sizes[0] = (image_size - 1) / (large ? 4 : 1) + 1;
    spec.sizes[1] = (spec.sizes[0] + 1) / 2;
  } else {
    spec.stem = Stem::kSimple;
    spec.pool = net.stem_pool;
    int64_t size = (image_size - 1) / (large ? 4 : 1) + 1;
    if (net.stem_pool) size = (size + 1) / 2;
    spec.sizes[0] = spec.sizes[1] = size;
    // Three times the channels, which the first cells' convolutions bring back to C.
    if (net.preproc && !large) spec.channels *= 3;
  }
}

bool step_reached(const std::vector<Gene>& genes, int64_t step, const std::vector<char>& states) {
  for (int64_t i = 2 * step; i < 2 * step + 2; ++i) {
    if (genes[i].primitive != kNone && states[genes[i].source]) return true;
  }
  return false;
}

// Which states a path from the input reaches, then, from the output back, which operations matter.
void find_alive(NetworkSpec& spec, const Net& net) {
  const int64_t count = net.n_cells;
  // Outputs of the stem (positions 0 and 1) and of the cells, reachable and wanted.
  std::vector<char> reached(count + 2, 1), wanted(count + 2, 0);
  std::vector<std::vector<char>> states(count);
  for (int64_t c = 0; c < count; ++c) {
    const Cell& cell = net.cell(c);
    std::vector<char>& state = states[c];
    state.assign({reached[c], reached[c + 1]});
    for (size_t step = 0; 2 * step < cell.genes.size(); ++step) {
      state.push_back(step_reached(cell.genes, step, state));
    }
    reached[c + 2] = 0;
    std::vector<int32_t>& concat = spec.cells[c].concat;
    for (const uint8_t s : cell.concat) {
      concat.push_back(state[s] ? s : -1);
      reached[c + 2] |= state[s];
    }
    if (!reached[c + 2]) concat.clear();
  }
  spec.connected = reached[count + 1];
  wanted[count + 1] = reached[count + 1];
  for (int64_t c = count; c-- > 0;) {
    const Cell& cell = net.cell(c);
    CellSpec& part = spec.cells[c];
    std::vector<char> needed(states[c].size(), 0);
    if (wanted[c + 2]) {
      for (const int32_t s : part.concat) {
        if (s >= 0) needed[s] = 1;
      }
    }
    part.alive = false;
    part.ops.resize(cell.genes.size());
    for (int64_t i = cell.genes.size(); i-- > 0;) {
      const Gene gene = cell.genes[i];
      const bool alive = needed[2 + i / 2] && gene.primitive != kNone && states[c][gene.source];
      part.ops[i] = {gene.primitive, gene.source, false, alive};
      needed[gene.source] |= alive;
      part.alive |= alive;
    }
    for (int side = 0; side < 2; ++side) {
      part.preprocess[side].alive = needed[side];
      wanted[c + side] |= needed[side];
    }
  }
}

}  // namespace

Net Net::read(const uint8_t* data, int64_t size, int64_t index) {
  GHN_CHECK(size >= kHead, "records: ", index, ": got ", size, " bytes, needs at least ", kHead);
  const int64_t steps[2] = {data[0], data[1]}, concats[2] = {data[2], data[3]};
  const int64_t expected = kHead + 4 * (steps[0] + steps[1]) + concats[0] + concats[1];
  GHN_CHECK(size == expected, "records: ", index, ": got ", size, " bytes, needs ", expected,
            " for cells of ", steps[0], " and ", steps[1], " steps");
  Net net;
  net.n_cells = number(data + 4, 2);
  net.c_mult = number(data + 6, 2);
  net.channels = number(data + 8, 4);
  net.fc_dim = number(data + 12, 4);
  net.fc_layers = number(data + 16, 2);
  net.kernel = number(data + 18, 2);
  const uint8_t flags = data[20];
  net.imagenet_stem = flags & 1;
  net.stem_pool = flags & 2;
  net.norm = flags & 4;
  net.preproc = flags & 8;
  net.glob_avg = flags & 16;
  const bool positive = net.n_cells && net.c_mult && net.channels && net.fc_dim && net.fc_layers &&
                        net.kernel && steps[0] && steps[1] && concats[0] && concats[1];
  GHN_CHECK(positive, "records: ", index,
            ": got a zero among steps, concatenated states, n_cells, C, C_mult, fc_layers, "
            "fc_dim and ks, needs positive numbers");
  GHN_CHECK(std::max(steps[0], steps[1]) <= 253, "records: ", index, ": got cells of ", steps[0],
            " and ", steps[1], " steps, needs at most 253");
  // A few bytes must not ask for hours of work.
  GHN_CHECK(net.n_cells * std::max(steps[0], steps[1]) <= kMostSteps, "records: ", index, ": got ",
            net.n_cells, " cells of up to ", std::max(steps[0], steps[1]), " steps, needs at most ",
            kMostSteps, " steps in all cells");
  GHN_CHECK(flags < 64 && !data[21] && !data[22] && !data[23], "records: ", index, ": got flags ",
            int(flags), ", knows those below 64, and zeros behind them");
  GHN_CHECK(net.kernel % 2 == 1, "records: ", index, ": ks: got ", net.kernel,
            ", needs an odd positive integer");
  // Keeps every product of a width and a size below 2^63.
  const int64_t widest = net.channels * net.c_mult;
  GHN_CHECK(widest <= (int64_t(1) << 24) / net.c_mult, "records: ", index, ": got C ", net.channels,
            " and C_mult ", net.c_mult, ", needs C * C_mult^2 up to 2^24");
  const uint8_t* at = data + kHead;
  read_genes(net.normal, at, steps[0], index, "normal");
  read_genes(net.reduce, at += 4 * steps[0], steps[1], index, "reduce");
  read_concat(net.normal, at += 4 * steps[1], concats[0], index, "normal");
  read_concat(net.reduce, at += concats[0], concats[1], index, "reduce");
  net.vit = uses(net, kMsa);
  check_channels(net, index);
  return net;
}

NetworkSpec NetworkSpec::of(const Net& net, int64_t num_classes, int64_t image_size) {
  const int64_t limit = 1 << 20;
  GHN_CHECK(num_classes >= 1 && num_classes < int64_t(1) << 31, "num_classes: got ", num_classes,
            ", needs a positive integer below 2^31");
  GHN_CHECK(image_size >= 1 && image_size <= limit, "image_size: got ", image_size,
            ", needs a positive integer up to ", limit);
  NetworkSpec spec;
  spec.norm = net.norm;
  spec.glob_avg = net.glob_avg;
  stem_spec(spec, net, image_size);
  spec.cells.resize(net.n_cells);
  find_alive(spec, net);
  int64_t channels = net.channels;
  // Channels and size of the two outputs that the next cell reads.
  int64_t read[2][2] = {{spec.channels, spec.sizes[0]}, {spec.channels, spec.sizes[1]}};
  for (int64_t c = 0; c < net.n_cells; ++c) {
    const bool reduction = net.reduction(c), halves = reduction && !net.vit;
    if (reduction) channels *= net.c_mult;
    CellSpec& cell = spec.cells[c];
    cell.channels = channels;
    cell.size = read[1][1];
    const bool halved = (c ? net.reduction(c - 1) : net.imagenet_stem) && !net.vit;
    for (int side = 0; side < 2; ++side) {
      PreprocessSpec& part = cell.preprocess[side];
      const bool older = halved && side == 0;
      part.kind = net.preproc ? (older ? Preprocess::kFactorized : Preprocess::kConv)
                              : (older ? Preprocess::kStride : Preprocess::kIdentity);
      part.in_channels = read[side][0];
      part.in_size = read[side][1];
    }
    for (OpSpec& op : cell.ops) op.halves = halves && op.source < 2;
    read[0][0] = read[1][0], read[0][1] = read[1][1];
    read[1][0] = int64_t(net.cell(c).concat.size()) * channels;
    if (halves) read[1][1] = (cell.size + 1) / 2;
  }
  spec.classifier.push_back(spec.glob_avg ? read[1][0] : read[1][0] * read[1][1] * read[1][1]);
  spec.classifier.insert(spec.classifier.end(), net.fc_layers - 1, net.fc_dim);
  spec.classifier.push_back(num_classes);
  return spec;
}

int64_t count_elements(const Params& params, int64_t index) {
  const int64_t limit = int64_t(1) << 62;
  int64_t total = 0;
  for (const Param& param : params.all) {
    int64_t elements = 1;
    for (int d = 0; d < param.dims; ++d) {
      const bool fits = !__builtin_mul_overflow(elements, param.shape[d], &elements);
      GHN_CHECK(fits, "records: ", index, ": has 2^63 parameters or more");
    }
    GHN_CHECK(elements <= limit - total, "records: ", index, ": has too many parameters");
    total += elements;
  }
  return total;
}

}  // namespace ghn::deepnets
