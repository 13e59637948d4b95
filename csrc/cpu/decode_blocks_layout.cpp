#include "decode_blocks_layout.h"

#include <algorithm>
#include <numeric>

namespace ghn {
namespace {

KernelSize& size_of(std::vector<KernelSize>& sizes, int64_t height, int64_t width) {
  for (KernelSize& size : sizes) {
    if (size.height == height && size.width == width) return size;
  }
  return sizes.emplace_back(KernelSize{height, width, {}});
}

// Appends the columns of one block to panels from `first` on, a new one where the last is full.
void append(std::vector<Panel>& panels, size_t first, int64_t columns, int64_t positions,
            float* to) {
  for (int64_t p = 0; p < positions;) {
    if (panels.size() == first || panels.back().used == columns) panels.emplace_back();
    Panel& panel = panels.back();
    const int64_t length = std::min(positions - p, columns - panel.used);
    panel.runs.push_back({panel.used, length, positions, to + p});
    panel.used += length;
    p += length;
  }
}

}  // namespace

DecodeLayout lay_out(const std::vector<DecodeGroup>& groups, const int64_t* nodes,
                     const std::vector<float*>& to, int64_t columns) {
  std::vector<size_t> order;
  for (size_t g = 0; g < groups.size(); ++g) {
    const int64_t decoder = groups[g].decoder;
    if ((decoder == kBlock || decoder == kHeadWeight) && groups[g].count > 0) order.push_back(g);
  }
  const auto channels = [&](size_t g) { return std::pair(groups[g].out, groups[g].in); };
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return channels(a) < channels(b); });
  DecodeLayout layout;
  for (size_t i = 0; i < order.size();) {
    const auto [out, in] = channels(order[i]);
    const size_t first = layout.panels.size();
    for (; i < order.size() && channels(order[i]) == std::pair(out, in); ++i) {
      const DecodeGroup& group = groups[order[i]];
      KernelSize& size = size_of(layout.sizes, group.height, group.width);
      for (int64_t n = 0; n < group.count; ++n) {
        const bool fresh = layout.panels.size() == first || layout.panels.back().used == columns;
        const int64_t panel = int64_t(layout.panels.size()) - (fresh ? 0 : 1);
        const int64_t lane = fresh ? 0 : layout.panels.back().used;
        size.nodes.push_back({nodes[group.first + n], panel, lane});
        append(layout.panels, first, columns, group.positions(),
               to[order[i]] + n * out * in * group.positions());
      }
    }
    layout.classes.push_back({out, in, int64_t(first), int64_t(layout.panels.size())});
  }
  return layout;
}

}  // namespace ghn
