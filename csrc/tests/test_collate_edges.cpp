// Collated edges on CPU, without Python: several graphs, one of them without edges, and wrong input,
// which the sanitizers watch.
#include <ATen/ATen.h>

#include <limits>
#include <vector>

#include "checks.h"
#include "ops.h"

namespace ghn {
inline constexpr tests::Op<at::Tensor(at::TensorList, at::IntArrayRef)> collate_edges_cpu{
    "ghn_fast::collate_edges"};
}  // namespace ghn

namespace {

using namespace ghn::tests;

// The edges and virtual edges of a chain.
at::Tensor rows(int64_t nodes, int64_t cutoff) {
  std::vector<int64_t> found;
  for (int64_t u = 0; u < nodes; ++u) {
    for (int64_t v = u + 1; v < nodes && v - u <= cutoff; ++v) {
      found.insert(found.end(), {u, v, v - u});
    }
  }
  return at::tensor(found, at::kLong).view({-1, 3});
}

void test_collate() {
  const at::Tensor one = rows(9, 4), two = rows(20, 19);
  const at::Tensor none = at::empty({0, 3}, at::kLong);
  const at::Tensor found = ghn::collate_edges_cpu({one, none, two}, {0, 9, 10, 30});
  const at::Tensor shift = at::tensor({10, 10, 0}, at::kLong);
  check(at::equal(found, at::cat({one, two + shift})), "edges are collated");
  bool all = true;
  for (int64_t column = 0; column < 3; ++column) {
    for (const int64_t value : {int64_t(-1), int64_t(20), std::numeric_limits<int64_t>::max()}) {
      at::Tensor wrong = two.clone();
      wrong[5][column] = value;
      all = all && refused([&] { ghn::collate_edges_cpu({one, none, wrong}, {0, 9, 10, 30}); });
    }
  }
  all = all && refused([&] { ghn::collate_edges_cpu({one}, {0}); });
  all = all && refused([&] { ghn::collate_edges_cpu({one, two}, {0, 9, 3}); });
  check(all, "wrong batches are refused");
}

}  // namespace

int main() {
  test_collate();
  return exit_status();
}
