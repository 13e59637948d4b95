// A block of a CUDA kernel on the host: a fiber per thread, all of them on one thread of the host.
//
// A fiber runs until it waits at a barrier, of its block or of its warp; which one runs next is the
// choice of the caller. First number first lets the first warp run as far ahead of the others as
// barriers allow, last number first the last one, and shuffled gives every mixture. A kernel
// without races gives the same bits in any order; one in which a thread reads what another writes
// between the same barriers does not. A barrier that some threads do not reach, or at which they
// meet others that wait elsewhere, ends the program with a message.
//
// What threads of a warp exchange (ballot, shuffle_xor) is a barrier of the warp, as it is on a
// GPU. Other than on a GPU the threads of a warp are not in step between barriers: nothing may
// count on that there either.
#pragma once

#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <set>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace ghn::emulation {

constexpr int kWarp = 32;

enum class Order { ascending, descending, shuffled };

// A set of threads, from which one is taken.
class Ready {
 public:
  Ready(int count, Order order) : count_(count), words_((count + 63) / 64, 0), order_(order) {}

  void add(int i) { words_[i / 64] |= uint64_t(1) << i % 64; }

  // -1 if there is none.
  int take() {
    const int found = order_ == Order::ascending    ? from(0)
                      : order_ == Order::descending ? last()
                                                    : around(int(random_() % count_));
    if (found >= 0) words_[found / 64] &= ~(uint64_t(1) << found % 64);
    return found;
  }

 private:
  int from(int first) const {
    for (size_t w = first / 64; w < words_.size(); ++w) {
      const uint64_t hidden = int(w) == first / 64 ? (uint64_t(1) << first % 64) - 1 : 0;
      const uint64_t left = words_[w] & ~hidden;
      if (left != 0) return int(w) * 64 + __builtin_ctzll(left);
    }
    return -1;
  }
  int around(int first) const {
    const int found = from(first);
    return found >= 0 ? found : from(0);
  }
  int last() const {
    for (size_t w = words_.size(); w-- > 0;) {
      if (words_[w] != 0) return int(w) * 64 + 63 - __builtin_clzll(words_[w]);
    }
    return -1;
  }

  int count_;
  std::vector<uint64_t> words_;
  Order order_;
  std::mt19937 random_{0};
};

class Threads {
 public:
  Threads(int count, Order order)
      : fibers_(count), ready_(count, order), barriers_(1 + (count + kWarp - 1) / kWarp) {
    for (Fiber& fiber : fibers_) fiber.stack.reset(new char[kStack]);  // not filled: it is large
    barriers_[0].threads = count;
    for (size_t w = 1; w < barriers_.size(); ++w) {
      const int first = int(w - 1) * kWarp;
      barriers_[w].first = first;
      barriers_[w].threads = count - first < kWarp ? count - first : kWarp;
    }
  }

  // Run `body` once on every thread. Returns whether the run came to its end: threads that meet
  // different barriers end the program, unless `may_fail`.
  bool run(const std::function<void()>& body, bool may_fail = false) {
    may_fail_ = may_fail;
    body_ = &body;
    for (size_t i = 0; i < fibers_.size(); ++i) {
      prepare(fibers_[i]);
      ready_.add(int(i));
    }
    while (!ended_ && (current_ = ready_.take()) >= 0) resume(fibers_[current_]);
    for (size_t i = 0; i < fibers_.size() && !ended_; ++i) {
      if (fibers_[i].line != kDone) differ(0, int(i));
    }
    return !ended_;
  }

  int current() const { return current_; }

  // The whole run ends where it is.
  void end() {
    ended_ = true;
    leave(true);
  }

  // The barrier of the block, or of the thread's warp.
  void sync(int line) { wait(barriers_[0], line); }
  void sync_warp(int line) { wait(barriers_[1 + current_ / kWarp], line); }

  // What thread number `from` of the block, which is in the same warp, gives here.
  template <class V>
  V exchange(V value, int from, int line) {
    static_assert(sizeof(V) <= sizeof(Fiber::given[0]));
    // Two places take turns: a warp's next barrier comes between this and what is written there
    // next.
    Fiber& own = fibers_[current_];
    const int place = own.turn ^= 1;
    std::memcpy(own.given[place], &value, sizeof(V));
    sync_warp(line);
    std::memcpy(&value, fibers_[from].given[place], sizeof(V));
    return value;
  }

 private:
  static constexpr int kStack = 1 << 16, kDone = -1;

  struct Fiber {
    ucontext_t context;
    void* jump[5];  // where it goes on
    bool started;
    std::unique_ptr<char[]> stack;
    int line;  // of the barrier at which it waits
    int turn;
    unsigned char given[2][16];
    void* fake_stack;
  };

  struct Barrier {
    int first = 0, threads = 0;
    int waiting = 0;
  };

  void differ(int i, int j) {
    ended_ = may_fail_;
    if (may_fail_) return;
    std::printf("FAILED: threads %d and %d meet different barriers, in lines %d and %d\n", i, j,
                fibers_[i].line, fibers_[j].line);
    std::exit(1);
  }

  void wait(Barrier& barrier, int line) {
    fibers_[current_].line = line;
    if (++barrier.waiting == barrier.threads) {
      barrier.waiting = 0;
      for (int i = barrier.first; i < barrier.first + barrier.threads; ++i) {
        if (fibers_[i].line != line) differ(i, current_);
        ready_.add(i);
      }
    }
    leave(ended_);
  }

  void prepare(Fiber& fiber) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    const auto self = reinterpret_cast<uintptr_t>(this);
    makecontext(&fiber.context, reinterpret_cast<void (*)()>(&Threads::enter), 2,
                unsigned(self >> 32), unsigned(self));
    fiber.started = false;
    fiber.line = fiber.turn = 0;
    fiber.fake_stack = nullptr;
  }

  static void enter(unsigned high, unsigned low) {
    auto* const self = reinterpret_cast<Threads*>(uintptr_t(high) << 32 | uintptr_t(low));
    self->arrived(nullptr);
    (*self->body_)();
    self->fibers_[self->current_].line = kDone;
    self->leave(true);
  }

  // A context is entered once; from then on its fiber and the host jump to each other, which takes
  // no system call.
  __attribute__((noinline)) void resume(Fiber& fiber) {
    starting(&host_fake_, fiber.stack.get(), kStack);
    if (__builtin_setjmp(host_) == 0) enter_or_jump(fiber);
    returned();
  }

  __attribute__((noinline)) void enter_or_jump(Fiber& fiber) {
    if (fiber.started) jump(fiber.jump);
    fiber.started = true;
    setcontext(&fiber.context);
  }

  __attribute__((noinline)) void leave(bool for_good) {
    Fiber& fiber = fibers_[current_];
    starting(for_good ? nullptr : &fiber.fake_stack, host_stack_, host_size_);
    if (__builtin_setjmp(fiber.jump) == 0) jump(host_);
    arrived(fibers_[current_].fake_stack);
  }

  [[noreturn]] __attribute__((noinline)) static void jump(void** to) {
    __builtin_longjmp(to, 1);
  }

  // What the address sanitizer has to know of a change of stacks.
#if defined(__SANITIZE_ADDRESS__)
  void starting(void** save, const void* stack, size_t size) {
    __sanitizer_start_switch_fiber(save, stack, size);
  }
  void arrived(void* fake) { __sanitizer_finish_switch_fiber(fake, &host_stack_, &host_size_); }
  void returned() { __sanitizer_finish_switch_fiber(host_fake_, nullptr, nullptr); }
#else
  void starting(void**, const void*, size_t) {}
  void arrived(void*) {}
  void returned() {}
#endif

  std::vector<Fiber> fibers_;
  Ready ready_;
  std::vector<Barrier> barriers_;  // of the block, then of each warp
  const std::function<void()>* body_ = nullptr;
  void* host_[5];
  void* host_fake_ = nullptr;
  const void* host_stack_ = nullptr;
  size_t host_size_ = 0;
  int current_ = 0;
  bool ended_ = false, may_fail_ = false;
};

// Barriers that a run meets, by their lines, and one that is left out: whether a test would notice.
struct Barriers {
  std::set<int> met;
  int left_out = 0;
  // Without a barrier a run may not end by itself.
  static constexpr int kMost = 1 << 20;
  int passed = 0;
  bool broken = false;  // whether a run did not come to its end
};

// What the kernels take for a block.
struct Block {
  Threads* threads;
  int number, blocks;
  Barriers* barriers = nullptr;

  int thread() const { return threads->current(); }
  int index() const { return number; }
  int count() const { return blocks; }
  void sync(int line = __builtin_LINE()) const {
    if (!left_out(line)) threads->sync(line);
  }
  void sync_warp(int line = __builtin_LINE()) const {
    if (!left_out(line)) threads->sync_warp(line);
  }

  template <class V>
  V shuffle_xor(V value, int mask, int line = __builtin_LINE()) const {
    return threads->exchange(value, thread() ^ mask, line);
  }
  void touch(const void* at) const { (void)*static_cast<const volatile char*>(at); }
  // A bit for each thread of the warp.
  unsigned ballot(bool flag, int line = __builtin_LINE()) const {
    unsigned bits = unsigned(flag) << thread() % kWarp;
    for (int mask = 1; mask < kWarp; mask *= 2) bits |= shuffle_xor(bits, mask, line);
    return bits;
  }

 private:
  bool left_out(int line) const {
    if (barriers == nullptr) return false;
    barriers->met.insert(line);
    if (barriers->left_out != line) return false;
    if (++barriers->passed == Barriers::kMost) threads->end();
    return true;
  }
};

}  // namespace ghn::emulation
