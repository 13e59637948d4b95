// NH, the universal hash of UMAC (RFC 4418, section 5.2.1; Black et al., CRYPTO 1999): the sum over
// pairs of words of (a + key)(b + key'), for which contents of the same length collide with a
// probability of 2^-w for words of w bits. Blocks are hashed with the same keys, and the hashes of
// the blocks are hashed in turn, with the keys of the next level, until one is left: at most five
// levels.
//
// Words of 64 bits where the processor multiplies them one by one; with AVX-512, two sums with keys
// of their own over words of 32 bits. Hashes do not leave the process, so that they need not agree.
#include "content_hash.h"

#include <array>
#include <cstring>
#include <random>
#include <vector>

#include "../cpu/isa.h"

namespace ghn {
namespace {

constexpr int64_t kBytes = 1024;  // of a block
constexpr int64_t kLevels = 8;    // for more than any memory holds

// Two of the length of a block; words of 64 bits take the first.
using Keys = std::array<std::array<uint64_t, kBytes / 8>, 2>;

std::array<Keys, kLevels> draw_keys() {
  std::random_device device;
  std::array<uint32_t, 16> seed;
  for (uint32_t& word : seed) word = device();
  std::seed_seq sequence(seed.begin(), seed.end());
  std::mt19937_64 random(sequence);
  std::array<Keys, kLevels> levels;
  for (Keys& keys : levels) {
    for (auto& key : keys) {
      for (uint64_t& word : key) word = random();
    }
  }
  return levels;
}

struct Sum {
  uint64_t low, high;
};

// Of a whole block at any address.
using HashBlock = Sum (*)(const char* block, const Keys& keys);

Sum hash_words(const char* block, const Keys& keys) {
  __extension__ typedef unsigned __int128 Wide;
  const auto& key = keys[0];
  Wide sums[2] = {0, 0};
  for (size_t i = 0; i < key.size(); i += 4) {
    uint64_t w[4];
    std::memcpy(w, block + 8 * i, sizeof(w));
    sums[0] += Wide(w[0] + key[i]) * (w[1] + key[i + 1]);
    sums[1] += Wide(w[2] + key[i + 2]) * (w[3] + key[i + 3]);
  }
  sums[0] += sums[1];
  return {uint64_t(sums[0]), uint64_t(sums[0] >> 64)};
}

#if defined(GHN_X86)
GHN_TARGET_AVX512
Sum hash_vectors(const char* block, const Keys& keys) {
  typedef uint32_t Words __attribute__((vector_size(64)));
  typedef uint64_t Sums __attribute__((vector_size(64)));
  constexpr uint64_t kWord = 0xffffffff;
  Sums sums[2][2] = {};  // two of each, so that additions need not wait
  for (int64_t i = 0; i < kBytes; i += 128) {
    for (int64_t half = 0; half < 2; ++half) {
      Words words;
      std::memcpy(&words, block + i + 64 * half, sizeof(words));
      for (int64_t k = 0; k < 2; ++k) {
        Words key;
        std::memcpy(&key, reinterpret_cast<const char*>(keys[size_t(k)].data()) + i + 64 * half,
                    sizeof(key));
        const auto pairs = reinterpret_cast<Sums>(words + key);
        sums[k][half] += (pairs & kWord) * (pairs >> 32);
      }
    }
  }
  Sum result{};
  for (int lane = 0; lane < 8; ++lane) {
    result.low += sums[0][0][lane] + sums[0][1][lane];
    result.high += sums[1][0][lane] + sums[1][1][lane];
  }
  return result;
}
GHN_TARGET_END
#endif

HashBlock choose() {
#if defined(GHN_X86)
  if (isa() == Isa::avx512) return hash_vectors;
#endif
  return hash_words;
}

// The hashes of all blocks; the last one is filled up with zeros.
void hash_blocks(HashBlock hash, const char* data, int64_t bytes, const Keys& keys,
                 std::vector<Sum>& to) {
  to.clear();
  to.reserve(size_t(bytes / kBytes) + 1);
  for (; bytes >= kBytes; data += kBytes, bytes -= kBytes) to.push_back(hash(data, keys));
  if (bytes > 0 || to.empty()) {
    char rest[kBytes] = {};
    if (bytes > 0) std::memcpy(rest, data, size_t(bytes));
    to.push_back(hash(rest, keys));
  }
}

}  // namespace

ContentHash content_hash(const int32_t* data, int64_t count) {
  static const std::array<Keys, kLevels> levels = draw_keys();
  static const HashBlock hash = choose();
  std::vector<Sum> sums, next;
  hash_blocks(hash, reinterpret_cast<const char*>(data), count * int64_t(sizeof(int32_t)),
              levels[0], sums);
  for (size_t level = 1; sums.size() > 1; ++level) {
    hash_blocks(hash, reinterpret_cast<const char*>(sums.data()),
                int64_t(sums.size() * sizeof(Sum)), levels[level], next);
    sums.swap(next);
  }
  return {sums[0].low, sums[0].high, count};
}

}  // namespace ghn
