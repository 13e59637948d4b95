// Hashes of contents: every bit and the length count, where the memory is and what lies around do
// not.
#include <algorithm>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "../plan/content_hash.h"
#include "checks.h"

namespace {

using namespace ghn::tests;

void test_bits(int64_t count) {
  std::vector<int32_t> data(size_t(count), 0);
  std::mt19937 random(7);
  for (int32_t& number : data) number = int32_t(random() % 50);
  const ghn::ContentHash hash = ghn::content_hash(data.data(), count);
  bool same = true;
  for (int64_t shift = 0; shift < 4; ++shift) {
    std::vector<int32_t> moved(size_t(count + 8), int32_t(shift));
    std::copy(data.begin(), data.end(), moved.begin() + shift);
    same = same && ghn::content_hash(moved.data() + shift, count) == hash;
  }
  std::set<std::pair<uint64_t, uint64_t>> seen = {{hash.low, hash.high}};
  const int64_t step = count < 3000 ? 1 : count / 997;
  int64_t tried = 0;
  for (int64_t i = 0; i < count; i += step) {
    for (const int bit : {0, 7, 31}) {
      data[size_t(i)] ^= int32_t(1u << bit);
      const ghn::ContentHash other = ghn::content_hash(data.data(), count);
      seen.insert({other.low, other.high});
      data[size_t(i)] ^= int32_t(1u << bit);
      ++tried;
    }
  }
  check(same, "the same contents have the same hash");
  check(int64_t(seen.size()) == tried + 1, "contents that differ in one bit have different ones");
}

void test_lengths() {
  const std::vector<int32_t> zeros(70000, 0);
  bool different = true;
  for (const int64_t count : {1, 2, 255, 256, 257, 16384, 65536}) {
    different = different && !(ghn::content_hash(zeros.data(), count) ==
                               ghn::content_hash(zeros.data(), count + 1));
  }
  check(different, "zeros of different lengths have different hashes");
}

}  // namespace

int main() {
  for (const int64_t count : {0, 1, 3, 255, 256, 257, 2048, 40000}) test_bits(count);
  test_lengths();
  return exit_status();
}
