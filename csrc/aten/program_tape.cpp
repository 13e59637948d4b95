#include "program_tape.h"

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <utility>

#include "image_ops.h"
#include "images.h"

namespace ghn {

ProgramTape::ProgramTape(const std::vector<Instruction>& program, const Tensors& parameters,
                         std::optional<at::Generator> generator)
    : program_(program), parameters_(parameters), generator_(std::move(generator)) {
  std::vector<int64_t> readers(program.size() + 1, 0);
  for (const Instruction& step : program) {
    for (const int64_t source : step.sources) ++readers[size_t(source)];
  }
  for_relu_.assign(program.size(), false);
  for (const Instruction& step : program) {
    if (step.code != Code::kRelu) continue;
    const int64_t source = step.sources[0];
    if (source > 0 && readers[size_t(source)] == 1) for_relu_[size_t(source - 1)] = true;
  }
}

at::Tensor ProgramTape::forward(const at::Tensor& images) {
  const at::NoGradGuard without;
  records_.assign(program_.size(), {});
  needs_.assign(1, false);
  Tensors values{images}, sources, weights;
  for (size_t step = 0; step < program_.size(); ++step) {
    const Instruction& instruction = program_[step];
    sources.clear();
    weights.clear();
    bool needed = !instruction.parameters.empty();
    for (const int64_t source : instruction.sources) {
      sources.push_back(values[size_t(source)]);
      needed = needed || needs(source);
    }
    for (const int64_t at : instruction.parameters) weights.push_back(parameters_[size_t(at)]);
    needs_.push_back(needed);
    values.push_back(run(step, sources, weights));
    for (const int64_t value : instruction.ends) values[size_t(value)].reset();
  }
  return values.back();
}

at::Tensor ProgramTape::run(size_t step, const Tensors& x, const Tensors& w) {
  const Instruction& instruction = program_[step];
  Record& record = records_[step];
  switch (instruction.code) {
    case Code::kConv:
      record.convolution.emplace(x[0], w[0], instruction.numbers);
      return record.convolution->forward();
    case Code::kNorm: {
      if (!is_channels_last(x[0]) || !has_image_type(x[0])) break;
      record.rectified = for_relu_[step];
      const bool relu = instruction.numbers[0] != 0 || record.rectified;
      auto [out, mean, invstd] = batch_norm_act_cpu(x[0], w[0], w[1], kNormEps, relu);
      record.kept = {x[0], mean, invstd};
      return out;
    }
    case Code::kRelu: {
      const int64_t source = instruction.sources[0];
      record.nothing = source > 0 && records_[size_t(source - 1)].rectified;
      if (record.nothing) return x[0];
      const at::Tensor out = at::relu(x[0]);
      record.kept = {out};
      return out;
    }
    case Code::kAdd: {
      if (x[0].sizes() != x[1].sizes() || x[0].scalar_type() != x[1].scalar_type()) break;
      const at::Tensor out = for_relu_[step] ? add_relu(x[0], x[1]) : at::Tensor();
      return rectified(step, out) ? out : run_instruction(instruction, x, w, generator_);
    }
    case Code::kCat: {
      const auto alike = [&](const at::Tensor& t) { return t.scalar_type() == x[0].scalar_type(); };
      if (!std::all_of(x.begin(), x.end(), alike)) break;
      for (const at::Tensor& part : x) record.channels.push_back(part.size(1));
      const at::Tensor out = for_relu_[step] ? cat_relu(x) : at::Tensor();
      return rectified(step, out) ? out : run_instruction(instruction, x, w, generator_);
    }
    case Code::kZeros:
      return run_instruction(instruction, x, w, generator_);
    default:
      break;
  }
  return run_by_autograd(step, x, w);
}

// Takes note of a value with its ReLU, if there is one.
bool ProgramTape::rectified(size_t step, const at::Tensor& value) {
  if (!value.defined()) return false;
  records_[step].rectified = true;
  records_[step].kept = {value};
  return true;
}

at::Tensor ProgramTape::run_by_autograd(size_t step, const Tensors& sources,
                                        const Tensors& weights) {
  Record& record = records_[step];
  record.by_autograd = true;
  Tensors inputs, leaves;
  for (size_t i = 0; i < sources.size(); ++i) {
    inputs.push_back(sources[i].detach());
    inputs.back().set_requires_grad(needs(program_[step].sources[i]));
  }
  for (const at::Tensor& weight : weights) {
    leaves.push_back(weight.detach());
    leaves.back().set_requires_grad(true);
  }
  at::Tensor out;
  {
    const at::AutoGradMode with(true);
    out = run_instruction(program_[step], inputs, leaves, generator_);
  }
  record.kept = {out};
  record.kept.insert(record.kept.end(), inputs.begin(), inputs.end());
  record.kept.insert(record.kept.end(), leaves.begin(), leaves.end());
  return out.detach();
}

void ProgramTape::backward(const at::Tensor& gradient,
                           const std::function<void(int64_t, const at::Tensor&)>& store) {
  const at::NoGradGuard without;
  gradients_.assign(program_.size() + 1, {});
  gradients_.back().add(gradient);
  for (size_t step = program_.size(); step-- > 0;) {
    GradientSum sum = std::exchange(gradients_[step + 1], {});
    if (!sum.empty() && needs_[step + 1]) differentiate(step, std::move(sum), store);
    records_[step] = {};
  }
}

void ProgramTape::differentiate(size_t step, GradientSum sum,
                                const std::function<void(int64_t, const at::Tensor&)>& store) {
  const Instruction& instruction = program_[step];
  const Tensors& kept = records_[step].kept;
  const std::vector<int64_t>& sources = instruction.sources;
  const auto weight = [&](size_t i) { return parameters_[size_t(instruction.parameters[i])]; };
  if (records_[step].by_autograd) {
    differentiate_by_autograd(step, sum.take(), store);
    return;
  }
  switch (instruction.code) {
    case Code::kConv: {
      const Convolution& convolution = *records_[step].convolution;
      const auto [x, w] = convolution.gradients(sum.take(), needs(sources[0]));
      if (x.defined()) gradient_of(sources[0]).add(x);
      store(instruction.parameters[0], w);
      return;
    }
    case Code::kNorm: {
      const bool relu = instruction.numbers[0] != 0 || records_[step].rectified;
      const std::optional<at::Tensor> bias = relu ? std::optional(weight(1)) : std::nullopt;
      auto [x, scale, shift] =
          batch_norm_act_backward_cpu(sum.take(), kept[0], weight(0), bias, kept[1], kept[2], relu);
      if (needs(sources[0])) gradient_of(sources[0]).add(x);
      store(instruction.parameters[0], scale);
      store(instruction.parameters[1], shift);
      return;
    }
    case Code::kRelu:
      if (records_[step].nothing) {
        gradient_of(sources[0]) = std::move(sum);
      } else {
        gradient_of(sources[0]).add_through_relu(std::move(sum), kept[0]);
      }
      return;
    case Code::kAdd: {
      const at::Tensor gradient = through_relu(step, std::move(sum));
      for (const int64_t source : sources) {
        if (needs(source)) gradient_of(source).add(gradient);
      }
      return;
    }
    case Code::kCat: {
      const at::Tensor gradient = through_relu(step, std::move(sum));
      int64_t first = 0;
      for (size_t i = 0; i < sources.size(); ++i) {
        const int64_t channels = records_[step].channels[i];
        if (needs(sources[i])) gradient_of(sources[i]).add(gradient.narrow(1, first, channels));
        first += channels;
      }
      return;
    }
    default:  // zeros depend on nothing
      return;
  }
}

// The gradient of a value before the ReLU that was applied to it, if one was.
at::Tensor ProgramTape::through_relu(size_t step, GradientSum sum) {
  if (!records_[step].rectified) return sum.take();
  GradientSum before;
  before.add_through_relu(std::move(sum), records_[step].kept[0]);
  return before.take();
}

void ProgramTape::differentiate_by_autograd(
    size_t step, const at::Tensor& gradient,
    const std::function<void(int64_t, const at::Tensor&)>& store) {
  const Instruction& instruction = program_[step];
  const Tensors& kept = records_[step].kept;
  const size_t count = instruction.sources.size();
  Tensors leaves;
  for (size_t i = 1; i < kept.size(); ++i) {
    if (kept[i].requires_grad()) leaves.push_back(kept[i]);
  }
  const Tensors found =
      torch::autograd::grad({kept[0]}, leaves, {gradient.to(kept[0].scalar_type())},
                            /*retain_graph=*/false, /*create_graph=*/false, /*allow_unused=*/true);
  size_t next = 0;
  for (size_t i = 1; i < kept.size(); ++i) {
    if (!kept[i].requires_grad()) continue;
    const at::Tensor& one = found[next++];
    if (!one.defined()) continue;
    if (i <= count) {
      gradient_of(instruction.sources[i - 1]).add(one);
    } else {
      store(instruction.parameters[i - 1 - count], one);
    }
  }
}

}  // namespace ghn
