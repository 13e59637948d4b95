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

int64_t extended(const Panel& panel, int64_t out, int64_t in) {
  return std::max(panel.out, out) * std::max(panel.in, in);
}

// The panel that takes the next columns of blocks of `out` by `in`, of which `left` are left.
size_t panel_for(std::vector<Panel>& panels, int64_t columns, int64_t out, int64_t in,
                 int64_t left) {
  size_t best = panels.size();
  int64_t least = out * in;  // what a new panel costs
  for (size_t p = 0; left < columns && p < panels.size(); ++p) {
    const int64_t room = columns - panels[p].used;
    const int64_t more = extended(panels[p], out, in) - panels[p].out * panels[p].in;
    if (room > 0 && more < least && (more == 0 || left <= room)) best = p, least = more;
  }
  if (best == panels.size()) panels.emplace_back();
  Panel& panel = panels[best];
  panel.out = std::max(panel.out, out);
  panel.in = std::max(panel.in, in);
  return best;
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
  // Large ones first: what they leave free takes smaller ones.
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    const int64_t area_a = groups[a].out * groups[a].in, area_b = groups[b].out * groups[b].in;
    return area_a != area_b ? area_a > area_b : channels(a) < channels(b);
  });
  DecodeLayout layout;
  for (size_t i = 0; i < order.size();) {
    const auto [out, in] = channels(order[i]);
    const size_t first = i;
    int64_t left = 0;
    for (; i < order.size() && channels(order[i]) == std::pair(out, in); ++i) {
      left += groups[order[i]].count * groups[order[i]].positions();
    }
    size_t panel = 0;
    int64_t room = 0;
    for (size_t g = first; g < i; ++g) {
      const DecodeGroup& group = groups[order[g]];
      KernelSize& size = size_of(layout.sizes, group.height, group.width);
      const int64_t positions = group.positions();
      for (int64_t n = 0; n < group.count; ++n) {
        size.nodes.push_back({nodes[group.first + n], int64_t(layout.columns.size())});
        float* block = to[order[g]] + n * out * in * positions;
        for (int64_t p = 0; p < positions;) {
          if (room == 0) {
            panel = panel_for(layout.panels, columns, out, in, left);
            room = std::min(columns - layout.panels[panel].used, left);
          }
          Panel& takes = layout.panels[panel];
          const int64_t length = std::min(positions - p, room);
          takes.runs.push_back({takes.used, length, positions, out, in, block + p});
          for (int64_t c = 0; c < length; ++c) {
            layout.columns.push_back({int64_t(panel), takes.used + c});
          }
          takes.used += length;
          p += length;
          room -= length;
          left -= length;
        }
      }
    }
  }
  return layout;
}

}  // namespace ghn
