// Gradient of the loss of a network on a CPU: forward, loss and backward of a program, from flat
// buffers to a flat buffer.
//
// Floor: that of the operations themselves. No lock of Python is held: networks of a meta-batch run
// side by side in threads of their own.
#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>

#include "checks.h"
#include "network_program.h"
#include "program_tape.h"

namespace ghn {
namespace {

// As ghn_fast.metatrain.candidate_run.Status.
enum Status { kOk = 0, kLoss = 1, kGradient = 2 };

// Where a parameter is in a flat buffer.
struct Place {
  int64_t offset, numel = 1;
  std::vector<int64_t> shape;

  at::Tensor view(const at::Tensor& flat) const {
    return flat.narrow(0, offset, numel).view(shape);
  }
};

// Of each parameter its offset, its number of axes and its shape.
std::vector<Place> places_of(at::IntArrayRef packed, int64_t numel) {
  std::vector<Place> places;
  for (size_t at = 0; at < packed.size();) {
    Place place{packed[at++], 1, {}};
    const int64_t axes = at < packed.size() ? packed[at++] : -1;
    TORCH_CHECK_VALUE(axes >= 0 && axes <= int64_t(packed.size() - at),
                      "places: it ends within a parameter");
    for (int64_t axis = 0; axis < axes; ++axis) {
      const int64_t size = packed[at++];
      TORCH_CHECK_VALUE(size >= 0 && (size == 0 || place.numel <= numel / size),
                        "places: got a parameter larger than the buffer");
      place.shape.push_back(size);
      place.numel *= size;
    }
    TORCH_CHECK_VALUE(place.offset >= 0 && place.offset <= numel - place.numel,
                      "places: got a parameter of ", place.numel, " elements at ", place.offset,
                      ", needs it within ", numel);
    places.push_back(std::move(place));
  }
  return places;
}

// Gradients are few numbers each: a loop takes less time than the dispatch of a copy.
void copy_to(const at::Tensor& from, const Place& place, const at::Tensor& flat) {
  if (from.is_contiguous() && from.numel() == place.numel) {
    float* to = flat.data_ptr<float>() + place.offset;
    if (from.scalar_type() == at::kFloat) {
      std::copy_n(from.const_data_ptr<float>(), place.numel, to);
      return;
    }
    if (from.scalar_type() == at::kBFloat16) {
      const c10::BFloat16* values = from.const_data_ptr<c10::BFloat16>();
      for (int64_t i = 0; i < place.numel; ++i) to[i] = float(values[i]);
      return;
    }
  }
  place.view(flat).copy_(from);
}

void check_flat(const at::Tensor& tensor, const at::Tensor& like, const char* name) {
  check_device(tensor, at::kCPU, name);
  TORCH_CHECK_VALUE(tensor.dim() == 1 && tensor.is_contiguous(), name, ": got shape ",
                    tensor.sizes(), ", needs a contiguous buffer");
  check_shape(tensor, like.sizes(), name);
}

// The cross-entropy, and the gradient of `factor` times it with respect to the logits.
std::pair<double, at::Tensor> loss_of(const at::Tensor& logits, const at::Tensor& targets,
                                      double label_smoothing, double factor) {
  const at::AutoGradMode with(true);
  const at::Tensor leaf = logits.detach().set_requires_grad(true);
  const at::Tensor loss = at::cross_entropy_loss(leaf.to(at::kFloat), targets, {},
                                                 at::Reduction::Mean, -100, label_smoothing);
  const at::Tensor start = at::full_like(loss.detach(), factor);
  return {loss.item().toDouble(), torch::autograd::grad({loss}, {leaf}, {start})[0]};
}

}  // namespace

std::tuple<int64_t, double, int64_t> program_gradient_cpu(
    at::IntArrayRef program, at::IntArrayRef places, const at::Tensor& flat,
    const std::optional<at::Tensor>& narrow, const at::Tensor& images, const at::Tensor& targets,
    double factor, double label_smoothing, std::optional<at::Generator> generator,
    at::Tensor gradient) {
  check_flat(flat, flat, "flat");
  check_dtype(flat, at::kFloat, "flat");
  check_flat(gradient, flat, "gradient");
  check_dtype(gradient, at::kFloat, "gradient");
  if (narrow) {
    check_flat(*narrow, flat, "narrow");
    check_dtype(*narrow, at::kBFloat16, "narrow");
  }
  check_device(images, at::kCPU, "images");
  TORCH_CHECK_VALUE(images.dim() == 4, "images: got shape ", images.sizes(),
                    ", needs (B, C, H, W)");
  const at::NoGradGuard without;
  const std::vector<Place> at = places_of(places, flat.numel());
  const std::vector<Instruction> steps = unpack_program(program, int64_t(at.size()));
  std::vector<at::Tensor> parameters;
  for (const Place& place : at) {
    // Vectors stay: normalisation is computed in single precision.
    const bool wide = !narrow || place.shape.size() == 1;
    parameters.push_back(place.view(wide ? flat : *narrow));
  }
  ProgramTape tape(steps, parameters, std::move(generator));
  const at::Tensor logits = tape.forward(narrow ? images.to(at::kBFloat16) : images);
  const auto [value, start] = loss_of(logits, targets, label_smoothing, factor);
  std::vector<bool> written(at.size(), false);
  tape.backward(start, [&](int64_t parameter, const at::Tensor& found) {
    const size_t i = size_t(parameter);
    if (written[i]) {
      at[i].view(gradient).add_(found);
    } else {
      copy_to(found, at[i], gradient);
    }
    written[i] = true;
  });
  Status status = std::isfinite(value) ? kOk : kLoss;
  if (status == kOk && gradient.numel() != 0) {
    const auto [low, high] = gradient.aminmax();
    const bool good = std::isfinite(low.item().toDouble()) && std::isfinite(high.item().toDouble());
    if (!good) status = kGradient;
  }
  if (status != kOk) gradient.zero_();
  return {status, value, logits.argmax(1).eq(targets).sum().item().toLong()};
}

// Autograd is on within: it differentiates what the instructions call.
TORCH_LIBRARY_IMPL(ghn_fast, CompositeImplicitAutograd, m) {
  m.impl("program_gradient", &program_gradient_cpu);
}

}  // namespace ghn
