// Networks as programs on CPU, without Python: sums of gradients at odd shapes and layouts, a
// program against autograd, and programs that are wrong, which the sanitizers watch.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <vector>

#include "../aten/gradient_sum.h"
#include "../aten/network_program.h"
#include "../aten/program_tape.h"
#include "checks.h"

namespace {

using namespace ghn::tests;
using ghn::Code;
using ghn::GradientSum;

typedef std::vector<int64_t> Numbers;

bool near(const at::Tensor& found, const at::Tensor& expected, double unit) {
  const double size = expected.abs().max().item().toDouble() + 1e-30;
  const at::Tensor error = (found.to(at::kDouble) - expected.to(at::kDouble)).abs().max();
  return found.sizes() == expected.sizes() && error.item().toDouble() <= unit * size;
}

// A part of the channels of a larger tensor, or all of one, or one in the other layout.
at::Tensor term(const Numbers& sizes, at::ScalarType type, int kind) {
  if (kind % 3 == 1) return at::randn(sizes).to(type);
  const at::Tensor wide = at::randn({sizes[0], sizes[1] + 5, sizes[2], sizes[3]}).to(type);
  const at::Tensor last = wide.contiguous(at::MemoryFormat::ChannelsLast);
  if (kind % 3 == 0) return last.narrow(1, 2, sizes[1]);
  return last.narrow(1, 2, sizes[1]).contiguous(at::MemoryFormat::ChannelsLast);
}

void test_sums(at::ScalarType type) {
  const double unit = type == at::kFloat ? 1e-6 : 8e-3;
  bool plain = true, masked = true, layout = true;
  for (const Numbers& sizes : std::vector<Numbers>{
           {2, 1, 3, 3}, {3, 17, 5, 7}, {5, 33, 1, 1}, {1, 64, 1, 8}, {1, 5, 8, 1}, {64, 3, 9, 9}}) {
    for (const int count : {1, 2, 7, 20}) {
      GradientSum sum, through;
      at::Tensor want = at::zeros(sizes, at::kDouble), inside = want.clone();
      for (int i = 0; i < count; ++i) {
        const at::Tensor one = term(sizes, type, i), other = term(sizes, type, i + 1);
        sum.add(one);
        through.add(other);
        want += one.to(at::kDouble);
        inside += other.to(at::kDouble);
      }
      GradientSum alone = sum;
      const at::Tensor total = alone.take();
      plain = plain && near(total, want, unit);
      layout = layout && total.is_contiguous(at::MemoryFormat::ChannelsLast);
      const at::Tensor relu = term(sizes, type, count).relu();
      sum.add_through_relu(through, relu);
      masked = masked && near(sum.take(), want + inside * (relu > 0), unit) && sum.empty();
    }
  }
  check(plain, "terms are added up");
  check(layout, "sums are in channels_last");
  check(masked, "terms through a ReLU count where it is above zero");
}

// conv, norm, relu, a second conv beside a skip, their concatenation, the mean of the pixels.
const Numbers kProgram{
    0, 1, 0, 1, 0, 4, 1, 1, 1, -1,  // 1: conv of the images
    1, 1, 1, 2, 1, 2, 1, 0,         // 2: norm
    2, 1, 2, 0, 0,                  // 3: relu
    0, 1, 3, 1, 3, 4, 1, 1, 2, -1,  // 4: conv with dilation
    0, 1, 2, 1, 4, 4, 1, 1, 1, -1,  // 5: depthwise conv
    5, 2, 4, 5, 0, 0,               // 6: sum
    6, 2, 6, 2, 0, 0,               // 7: concatenation
    19, 1, 7, 0, 0,                 // 8: mean of the pixels
    20, 1, 8, 0, 0,                 // 9: flat
    11, 1, 9, 1, 5, 0,              // 10: linear
};

std::vector<at::Tensor> parameters() {
  return {at::randn({6, 3, 3, 3}), at::rand({6}) + 0.5, at::randn({6}),
          at::randn({6, 6, 3, 3}), at::randn({6, 1, 5, 5}), at::randn({10, 12})};
}

void test_tape_against_autograd() {
  const std::vector<at::Tensor> values = parameters();
  const auto program = ghn::unpack_program(kProgram, int64_t(values.size()));
  const at::Tensor images = at::randn({4, 3, 7, 9}).contiguous(at::MemoryFormat::ChannelsLast);
  std::vector<at::Tensor> leaves, at_step{images};
  for (const at::Tensor& value : values) leaves.push_back(value.detach().set_requires_grad(true));
  for (const ghn::Instruction& step : program) {
    std::vector<at::Tensor> x, w;
    for (const int64_t source : step.sources) x.push_back(at_step[size_t(source)]);
    for (const int64_t i : step.parameters) w.push_back(leaves[size_t(i)]);
    at_step.push_back(run_instruction(step, x, w, {}));
  }
  const at::Tensor grad = at::randn(at_step.back().sizes());
  const auto want = torch::autograd::grad({at_step.back()}, leaves, {grad});

  ghn::ProgramTape tape(program, values, {});
  check(near(tape.forward(images), at_step.back().detach(), 1e-6), "a tape gives the value");
  std::vector<at::Tensor> found(values.size());
  tape.backward(grad, [&](int64_t i, const at::Tensor& g) { found[size_t(i)] = g; });
  bool same = true;
  for (size_t i = 0; i < found.size(); ++i) {
    same = same && found[i].defined() && near(found[i], want[i], 1e-5);
  }
  check(same, "a tape gives autograd's gradients");
}

void test_wrong_programs() {
  const auto wrong = [](const Numbers& program) {
    return refused([&] { ghn::unpack_program(program, 6); });
  };
  check(!wrong(kProgram), "a right program is taken");
  bool all = true;
  for (size_t length = 0; length < kProgram.size(); ++length) {
    const Numbers part(kProgram.begin(), kProgram.begin() + int64_t(length));
    // A part that ends with an instruction is a program.
    const bool ends = length == 10 || length == 18 || length == 23 || length == 33 ||
                      length == 43 || length == 49 || length == 55 || length == 60 || length == 65;
    all = all && wrong(part) == !ends;
  }
  check(all, "programs that are cut off are refused");
  int ran = 0, ended = 0;
  const std::vector<at::Tensor> values = parameters();
  const at::Tensor images = at::randn({2, 3, 5, 5}).contiguous(at::MemoryFormat::ChannelsLast);
  for (size_t at = 0; at < kProgram.size(); ++at) {
    for (const int64_t value : {int64_t(-2), int64_t(0), int64_t(1), int64_t(3), int64_t(23),
                                int64_t(1) << 40}) {
      Numbers program = kProgram;
      program[at] = value;
      // Refused or run, but nothing is read that is not there.
      const bool error = refused([&] {
        const auto steps = ghn::unpack_program(program, int64_t(values.size()));
        ghn::ProgramTape tape(steps, values, {});
        const at::Tensor out = tape.forward(images);
        tape.backward(at::ones_like(out), [](int64_t, const at::Tensor&) {});
      });
      ++(error ? ended : ran);
    }
  }
  check(ran > 0 && ended > ran, "programs with wrong numbers end in errors, or run");
}

}  // namespace

int main() {
  at::manual_seed(0);
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) test_sums(type);
  test_tape_against_autograd();
  test_wrong_programs();
  return exit_status();
}
