// Checks of packed plans, and the memory of which contents and which tensors passed them.

#include "gated_gnn_plan_check.h"

#include <algorithm>
#include <deque>
#include <mutex>
#include <optional>
#include <unordered_set>
#include <vector>

#include "../common/checks.h"
#include "content_hash.h"

namespace ghn {
namespace {

bool header_fits(const int32_t* data, int64_t size) {
  if (size < Plan::kHeader || data[0] != Plan::kMagic || data[7] != 0) return false;
  for (int i = 1; i < 7; ++i) {
    if (data[i] < 0) return false;
  }
  return Plan::size(data) == size && data[6] <= data[2];
}

bool all_below(const int32_t* index, int64_t count, int64_t end) {
  // Negative numbers become large ones. Without an exit, so that the loop vectorises.
  uint32_t largest = 0;
  for (int64_t i = 0; i < count; ++i) largest = std::max(largest, uint32_t(index[i]));
  return count == 0 || int64_t(largest) < end;
}

bool ascends(const int32_t* values, int64_t count, int64_t first, int64_t last) {
  bool fine = values[0] == first && values[count - 1] == last;
  for (int64_t i = 1; i < count; ++i) fine &= values[i - 1] <= values[i];
  return fine;
}

bool list_in_bounds(const Plan& plan, const EdgeList& list) {
  const int64_t n = plan.num_nodes;
  if (!ascends(list.ptr, n + 1, 0, plan.num_edges)) return false;
  for (int64_t v = 0; v < n; ++v) {
    if (list.split[v] < list.ptr[v] || list.split[v] > list.ptr[v + 1]) return false;
  }
  if (!all_below(list.distance, plan.num_edges, int64_t(plan.max_distance) + 1)) return false;
  for (int64_t g = 0; g < plan.num_graphs; ++g) {
    const int64_t first = plan.graph_ptr[g], last = plan.graph_ptr[g + 1];
    const int64_t begin = list.ptr[first], end = list.ptr[last];
    if (!all_below(list.node + begin, end - begin, last - first)) return false;
  }
  return true;
}

bool order_in_bounds(const Plan& plan, const SweepOrder& sweep) {
  if (!ascends(sweep.graph_level, plan.num_graphs + 1, 0, sweep.num_levels)) return false;
  if (!ascends(sweep.level, int64_t(sweep.num_levels) + 1, 0, plan.num_nodes)) return false;
  for (int64_t g = 0; g < plan.num_graphs; ++g) {
    const int64_t first = plan.graph_ptr[g], last = plan.graph_ptr[g + 1];
    if (sweep.level[sweep.graph_level[g]] != first) return false;
    if (!all_below(sweep.node + first, last - first, last - first)) return false;
  }
  return true;
}

// Of a plan that is in bounds: distances are 1 up to `split` and above 1 behind it.
bool distances_fit(const Plan& plan, const EdgeList& list) {
  for (int64_t v = 0; v < plan.num_nodes; ++v) {
    bool fine = true;
    for (int64_t e = list.ptr[v]; e < list.split[v]; ++e) fine &= list.distance[e] == 1;
    for (int64_t e = list.split[v]; e < list.ptr[v + 1]; ++e) fine &= list.distance[e] > 1;
    if (!fine) return false;
  }
  return true;
}

// Level of each node in a sweep; false if a node comes twice, and another therefore never.
bool node_levels(const Plan& plan, const SweepOrder& sweep, std::vector<int32_t>& levels) {
  levels.assign(plan.num_nodes, -1);
  for (int64_t g = 0; g < plan.num_graphs; ++g) {
    int32_t* const of_graph = levels.data() + plan.graph_ptr[g];
    for (int32_t l = sweep.graph_level[g]; l < sweep.graph_level[g + 1]; ++l) {
      for (int32_t i = sweep.level[l]; i < sweep.level[l + 1]; ++i) {
        if (of_graph[sweep.node[i]] >= 0) return false;
        of_graph[sweep.node[i]] = l;
      }
    }
  }
  return true;
}

bool levels_ascend(const Plan& plan, const EdgeList& gather, const std::vector<int32_t>& levels) {
  for (int64_t g = 0; g < plan.num_graphs; ++g) {
    const int32_t* const of_graph = levels.data() + plan.graph_ptr[g];
    for (int64_t v = plan.graph_ptr[g]; v < plan.graph_ptr[g + 1]; ++v) {
      int32_t last = -1;
      for (int64_t e = gather.ptr[v]; e < gather.ptr[v + 1]; ++e) {
        last = std::max(last, of_graph[gather.node[e]]);
      }
      if (last >= levels[v]) return false;
    }
  }
  return true;
}

// A number that two lists share if they hold the same edges, in whatever order.
uint64_t fingerprint(const Plan& plan, const EdgeList& list, bool by_receiver) {
  uint64_t sum = 0;
  for (int64_t g = 0; g < plan.num_graphs; ++g) {
    const int64_t first = plan.graph_ptr[g];
    for (int64_t v = first; v < plan.graph_ptr[g + 1]; ++v) {
      for (int64_t e = list.ptr[v]; e < list.ptr[v + 1]; ++e) {
        const uint64_t own = v, other = first + list.node[e];
        const uint64_t source = by_receiver ? other : own, target = by_receiver ? own : other;
        uint64_t mixed = (source << 32 | target) * 0x9E3779B97F4A7C15;
        mixed = (mixed ^ mixed >> 32 ^ uint64_t(list.distance[e])) * 0xD6E8FEB86659FD93;
        sum += mixed ^ mixed >> 32;
      }
    }
  }
  return sum;
}

KnownPlan facts_of(const int32_t* header_and_graphs) {
  KnownPlan known;
  known.checked = true;
  known.num_graphs = header_and_graphs[1], known.num_nodes = header_and_graphs[2];
  const int32_t* const graph_ptr = header_and_graphs + Plan::kHeader;
  for (int64_t g = 0; g < known.num_graphs; ++g) {
    known.largest_graph = std::max<int64_t>(known.largest_graph, graph_ptr[g + 1] - graph_ptr[g]);
  }
  return known;
}

// Contents that were found sound. The latest ones stay: what is not asked for again while kMost
// others are goes.
class SoundContents {
 public:
  bool has(const ContentHash& hash) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (recent_.contains(hash)) return true;
    if (!before_.contains(hash)) return false;
    insert(hash);
    return true;
  }
  void add(const ContentHash& hash) {
    const std::lock_guard<std::mutex> lock(mutex_);
    insert(hash);
  }

 private:
  static constexpr size_t kMost = size_t(1) << 16;
  struct Place {
    size_t operator()(const ContentHash& hash) const { return size_t(hash.low); }
  };
  using Set = std::unordered_set<ContentHash, Place>;

  void insert(const ContentHash& hash) {
    if (recent_.size() >= kMost) {
      before_ = std::move(recent_);
      recent_ = Set();
    }
    recent_.insert(hash);
  }

  std::mutex mutex_;
  Set recent_, before_;
};

// Plans on devices, where reading costs a copy. Each is held, so that its memory is nobody else's;
// it is that plan's as long as the tensor has it, and unchanged as far as its version tells.
class PlansOnDevices {
 public:
  std::optional<KnownPlan> find(const Tensor& packed) {
    const void* const data = packed.const_data_ptr();
    const int64_t numel = packed.numel(), version = packed.version();
    const std::lock_guard<std::mutex> lock(mutex_);
    // From the latest on: there may be thousands of small ones.
    const auto found = std::find_if(entries_.rbegin(), entries_.rend(), [&](const Entry& entry) {
      return entry.data == data && entry.numel == numel && entry.version == version &&
             entry.tensor.const_data_ptr() == data && entry.tensor.version() == version;
    });
    if (found == entries_.rend()) return std::nullopt;
    return found->plan;
  }
  void add(const Tensor& packed, const KnownPlan& plan) {
    const void* const data = packed.const_data_ptr();
    const int64_t numel = packed.numel(), version = packed.version();
    // Freed when the lock is: that may wait for Python's lock, which may wait for ours.
    std::vector<Entry> gone;
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto take = [&](std::deque<Entry>::iterator entry) {
      held_ -= entry->numel;
      gone.push_back(std::move(*entry));
      entries_.erase(entry);
    };
    const auto same = [&](const Entry& entry) { return entry.data == data; };
    const auto known = std::find_if(entries_.begin(), entries_.end(), same);
    if (known != entries_.end()) take(known);
    while (!entries_.empty() && held_ + numel > kMost) take(entries_.begin());
    entries_.push_back({packed, data, numel, version, plan});
    held_ += numel;
  }

 private:
  static constexpr int64_t kMost = int64_t(1) << 24;  // numbers: 64 MiB
  struct Entry {
    Tensor tensor;
    const void* data;
    int64_t numel, version;
    KnownPlan plan;
  };

  std::mutex mutex_;
  std::deque<Entry> entries_;
  int64_t held_ = 0;
};

// Never destroyed: other threads may still be at work when the process exits.
SoundContents& sound_contents() {
  static auto& contents = *new SoundContents;
  return contents;
}
PlansOnDevices& plans_on_devices() {
  static auto& plans = *new PlansOnDevices;
  return plans;
}

}  // namespace

std::string plan_problem(const int32_t* data, int64_t size) {
  if (!header_fits(data, size)) {
    return "got a vector of " + std::to_string(size) + " numbers that is no plan";
  }
  const Plan plan = Plan::read(data);
  const char* const names[2] = {"receiver", "sender"};
  if (!ascends(plan.graph_ptr, int64_t(plan.num_graphs) + 1, 0, plan.num_nodes)) {
    return "the first nodes of its graphs do not ascend from 0 to " +
           std::to_string(plan.num_nodes);
  }
  for (int i = 0; i < 2; ++i) {
    const EdgeList& list = i == 0 ? plan.in : plan.out;
    if (!list_in_bounds(plan, list)) {
      return std::string("an index of its edges by ") + names[i] + " is out of range";
    }
    if (!distances_fit(plan, list)) {
      return std::string("its edges by ") + names[i] +
             " have a distance other than 1 for an edge, or below 2 for a virtual edge";
    }
  }
  if (fingerprint(plan, plan.in, true) != fingerprint(plan, plan.out, false)) {
    return "its edges by receiver are not those by sender";
  }
  const int32_t* const distance = plan.in.distance;
  const int32_t largest =
      plan.num_edges == 0 ? 0 : *std::max_element(distance, distance + plan.num_edges);
  if (largest != plan.max_distance) {
    return "its largest distance is " + std::to_string(largest) + ", and it tells " +
           std::to_string(plan.max_distance);
  }
  std::vector<int32_t> levels;
  for (int i = 0; i < 2; ++i) {
    const std::string sweep = i == 0 ? "the forward sweep" : "the backward sweep";
    if (!order_in_bounds(plan, plan.sweep[i])) {
      return "an index of the order of " + sweep + " is out of range";
    }
    if (!node_levels(plan, plan.sweep[i], levels)) return sweep + " visits a node twice";
    if (!levels_ascend(plan, plan.gather(i), levels)) {
      return sweep + " does not follow a topological order";
    }
  }
  return {};
}

void remember_made_plan(const Tensor& packed) {
  sound_contents().add(content_hash(packed.const_data_ptr<int32_t>(), packed.numel()));
}

void remember_moved_plan(const Tensor& packed, const int32_t* header_and_graphs) {
  // On the CPU it is its contents that are known.
  if (packed.is_cpu() || packed.is_inference()) return;
  plans_on_devices().add(packed, facts_of(header_and_graphs));
}

void check_plan(const Tensor& packed) {
  const int32_t* const data = packed.const_data_ptr<int32_t>();
  const ContentHash hash = content_hash(data, packed.numel());
  if (sound_contents().has(hash)) return;
  const std::string problem = plan_problem(data, packed.numel());
  GHN_CHECK(problem.empty(), "plan: ", problem,
            ", needs the result of gated_gnn_plan as it was made");
  sound_contents().add(hash);
}

KnownPlan known_plan(const Tensor& packed, bool may_copy) {
  if (packed.is_cpu()) {
    check_plan(packed);
    return facts_of(packed.const_data_ptr<int32_t>());
  }
  if (!packed.is_inference()) {
    if (const auto found = plans_on_devices().find(packed)) return *found;
  }
  if (!may_copy) return {};
  const Tensor copy = packed.cpu();
  check_plan(copy);
  remember_moved_plan(packed, copy.const_data_ptr<int32_t>());
  return facts_of(copy.const_data_ptr<int32_t>());
}

void check_plan_nodes(const KnownPlan& plan, int64_t num_nodes) {
  GHN_CHECK(!plan.checked || plan.num_nodes == num_nodes, "x: got ", num_nodes, " nodes, needs ",
            plan.num_nodes, ", as many as the plan has");
}

}  // namespace ghn
