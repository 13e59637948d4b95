// A block of a CUDA kernel on the host: a fiber per thread, all of them on one thread of the host.
//
// Between two barriers the fibers run one after the other, in an order that the caller chooses. A
// kernel without races gives the same bits in any order; one in which a thread reads what another
// writes between the same barriers does not. A barrier that some threads do not reach, or at which
// they meet others that wait elsewhere, ends the program with a message.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <numeric>
#include <random>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace ghn::emulation {

enum class Order { ascending, descending, shuffled };

class Threads {
 public:
  Threads(int count, Order order) : fibers_(count), sequence_(count), order_(order) {
    std::iota(sequence_.begin(), sequence_.end(), 0);
    if (order == Order::descending) std::reverse(sequence_.begin(), sequence_.end());
    for (Fiber& fiber : fibers_) fiber.stack.resize(kStack);
  }

  // Run `body` once on every thread.
  void run(const std::function<void()>& body) {
    body_ = &body;
    for (Fiber& fiber : fibers_) prepare(fiber);
    int at = 0;
    while (at != kDone) {
      if (order_ == Order::shuffled) std::shuffle(sequence_.begin(), sequence_.end(), random_);
      for (const int i : sequence_) resume(i);
      at = fibers_[0].line;
      for (size_t i = 0; i < fibers_.size(); ++i) {
        if (fibers_[i].line == at) continue;
        std::printf("FAILED: threads 0 and %zu meet different barriers, in lines %d and %d\n", i,
                    at, fibers_[i].line);
        std::exit(1);
      }
    }
  }

  int current() const { return current_; }

  void sync(int line) {
    fibers_[current_].line = line;
    leave(false);
  }

 private:
  static constexpr int kStack = 1 << 16, kDone = -1;

  struct Fiber {
    ucontext_t context;
    std::vector<char> stack;
    int line;  // of the barrier at which it waits
    void* fake_stack;
  };

  void prepare(Fiber& fiber) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = nullptr;
    const auto self = reinterpret_cast<uintptr_t>(this);
    makecontext(&fiber.context, reinterpret_cast<void (*)()>(&Threads::enter), 2,
                unsigned(self >> 32), unsigned(self));
    fiber.line = 0;
    fiber.fake_stack = nullptr;
  }

  static void enter(unsigned high, unsigned low) {
    auto* const self = reinterpret_cast<Threads*>(uintptr_t(high) << 32 | uintptr_t(low));
    self->arrived(nullptr);
    (*self->body_)();
    self->fibers_[self->current_].line = kDone;
    self->leave(true);
  }

  void resume(int i) {
    current_ = i;
    starting(&host_fake_, fibers_[i].stack.data(), fibers_[i].stack.size());
    swapcontext(&host_, &fibers_[i].context);
    returned();
  }

  void leave(bool for_good) {
    Fiber& fiber = fibers_[current_];
    starting(for_good ? nullptr : &fiber.fake_stack, host_stack_, host_size_);
    swapcontext(&fiber.context, &host_);
    arrived(fiber.fake_stack);
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
  std::vector<int> sequence_;
  Order order_;
  std::mt19937 random_{0};
  const std::function<void()>* body_ = nullptr;
  ucontext_t host_;
  void* host_fake_ = nullptr;
  const void* host_stack_ = nullptr;
  size_t host_size_ = 0;
  int current_ = 0;
};

// What the kernels take for a block.
struct Block {
  Threads* threads;
  int number, blocks;

  int thread() const { return threads->current(); }
  int index() const { return number; }
  int count() const { return blocks; }
  void sync(int line = __builtin_LINE()) const { threads->sync(line); }
};

}  // namespace ghn::emulation
