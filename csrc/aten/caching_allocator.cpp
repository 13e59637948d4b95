// A step of meta-training allocates and frees some ten thousand tensors, many of a hundred kilobytes
// to some megabytes. The C library sorts and merges such blocks, which takes an eighth of a step of
// narrow networks. Here a block goes to a list of blocks of its size, and comes from it again: some
// ten nanoseconds.
//
// Sizes are rounded up to eight steps from one power of two to the next, so that at most an eighth is
// lost. Lists hold no more than what is in use, or kLeast: before the process grows beyond that, all
// of them go back to the C library.
#include "caching_allocator.h"

#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>
#include <c10/util/Exception.h>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#define GHN_FORKS
#endif

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <mutex>
#include <vector>

namespace ghn {
namespace {

constexpr size_t kSmallest = 64;  // bytes of a block
constexpr size_t kLeast = size_t(64) << 20;
constexpr size_t kHeader = 64;  // in front of a block; keeps its alignment
constexpr int kSteps = 8;
constexpr size_t kClasses = 64 * kSteps;

// The class of blocks of a size, and the size of all of its blocks.
struct SizeClass {
  size_t index, bytes;

  explicit SizeClass(size_t wanted) {
    const size_t size = std::max(wanted, kSmallest);
    const int power = std::bit_width(size - 1) - 1;  // 2^power < size <= 2^(power + 1)
    const size_t step = (size_t(1) << power) / kSteps;
    const size_t steps = (size - (size_t(1) << power) + step - 1) / step;
    bytes = (size_t(1) << power) + steps * step;
    index = size_t(power) * kSteps + steps - 1;
  }
};

struct Header {
  SizeClass of;
};
static_assert(sizeof(Header) <= kHeader);

class CachingAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t size) override {
    void* data = size == 0 ? nullptr : take(SizeClass(size));
    return {data, data, &give_back, c10::Device(c10::DeviceType::CPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &give_back; }

  void copy_data(void* to, const void* from, size_t count) const override {
    default_copy_data(to, from, count);
  }

  // A process that is forked while another thread holds the lock would wait for it for ever.
  void lock() { mutex_.lock(); }
  void unlock() { mutex_.unlock(); }

  CachedMemory memory() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return {int64_t(in_use_), int64_t(kept_)};
  }

 private:
  void* take(SizeClass of) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      std::vector<void*>& list = lists_[of.index];
      if (!list.empty()) {
        void* data = list.back();
        list.pop_back();
        kept_ -= of.bytes;
        in_use_ += of.bytes;
        return data;
      }
      if (kept_ > std::max(in_use_, kLeast)) release();
      in_use_ += of.bytes;
    }
    void* block = nullptr;
    try {
      block = c10::alloc_cpu(of.bytes + kHeader);
    } catch (...) {
      // What is kept may be what lacks.
      {
        const std::lock_guard<std::mutex> lock(mutex_);
        release();
      }
      try {
        block = c10::alloc_cpu(of.bytes + kHeader);
      } catch (...) {
        const std::lock_guard<std::mutex> lock(mutex_);
        in_use_ -= of.bytes;
        throw;
      }
    }
    new (block) Header{of};
    return static_cast<std::byte*>(block) + kHeader;
  }

  static void give_back(void* data);

  void keep(void* data) {
    const SizeClass of = header(data)->of;
    const std::lock_guard<std::mutex> lock(mutex_);
    in_use_ -= of.bytes;
    kept_ += of.bytes;
    lists_[of.index].push_back(data);
  }

  static Header* header(void* data) {
    return reinterpret_cast<Header*>(static_cast<std::byte*>(data) - kHeader);
  }

  void release() {
    for (std::vector<void*>& list : lists_) {
      for (void* data : list) c10::free_cpu(header(data));
      list.clear();
    }
    kept_ = 0;
  }

  std::mutex mutex_;
  std::array<std::vector<void*>, kClasses> lists_;
  size_t in_use_ = 0, kept_ = 0;
};

// Never destroyed: tensors outlive everything else at the end of a process.
CachingAllocator* the_allocator = nullptr;
std::once_flag once;

void CachingAllocator::give_back(void* data) {
  if (data != nullptr) the_allocator->keep(data);
}

}  // namespace

void cache_cpu_memory() {
  std::call_once(once, [] {
    the_allocator = new CachingAllocator();
#ifdef GHN_FORKS
    const auto unlock = [] { the_allocator->unlock(); };
    pthread_atfork([] { the_allocator->lock(); }, unlock, unlock);
#endif
    c10::SetCPUAllocator(the_allocator);
  });
}

CachedMemory cached_cpu_memory() {
  return the_allocator == nullptr ? CachedMemory{0, 0} : the_allocator->memory();
}

}  // namespace ghn
