#include "tensor.h"

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <stdexcept>

#include "checks.h"
#include "torch_call.h"

namespace ghn {
namespace detail {

void fail_in_torch(const char* what) {
  // Newer than the torch that is compiled for, so that it has to be looked up.
  const auto message = reinterpret_cast<const char* (*)()>(
      dlsym(RTLD_DEFAULT, "torch_exception_get_what_without_backtrace"));
  const char* const said = message == nullptr ? nullptr : message();
  throw std::runtime_error(std::string(what) + ": " +
                           (said == nullptr ? "torch could not do this" : said));
}

void print(std::ostream& to, IntArrayRef numbers) {
  to << '[';
  for (size_t i = 0; i < numbers.size(); ++i) to << (i == 0 ? "" : ", ") << numbers[i];
  to << ']';
}

void print(std::ostream& to, const Device& device) {
  switch (device.type()) {
    case DeviceType::CPU:
      to << "cpu";
      break;
    case DeviceType::CUDA:
      to << "cuda";
      break;
    case DeviceType::Meta:
      to << "meta";
      break;
    default:
      to << "device type " << int(device.type());
  }
  if (device.has_index()) to << ':' << device.index();
}

}  // namespace detail

namespace {

const std::nullopt_t kDefault = std::nullopt;

std::atomic<bool> fill_new_memory = false;

}  // namespace

// For tests, which call it by its name: whether new memory is filled as torch's deterministic mode
// does, so that what an op leaves unwritten shows.
extern "C" [[gnu::visibility("default")]] void ghn_fast_fill_new_memory(bool on) {
  fill_new_memory = on;
}

// Not through the dispatcher, which takes twice as long, unless somebody wants to see torch's
// deterministic mode fill what is new.
Tensor empty(IntArrayRef sizes, const TensorOptions& options) {
  constexpr size_t kMostDims = 8;
  if (fill_new_memory.load(std::memory_order_relaxed) || sizes.size() > kMostDims) {
    return call_torch("aten::empty", "memory_format", sizes, std::optional(options.type), kDefault,
                      std::optional(options.where), kDefault, kDefault);
  }
  int64_t strides[kMostDims], step = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    strides[i] = step;
    step *= std::max<int64_t>(sizes[i], 1);
  }
  const StableIValue type = torch::stable::detail::from(options.type);
  const StableIValue device = torch::stable::detail::from(options.where.type());
  AtenTensorHandle made = nullptr;
  detail::check(
      aoti_torch_empty_strided(int64_t(sizes.size()), sizes.data(), strides,
                               torch::stable::detail::to<int32_t>(type),
                               torch::stable::detail::to<int32_t>(device), options.where.index(),
                               &made),
      "empty");
  return Tensor(made);
}

Tensor zeros(IntArrayRef sizes, const TensorOptions& options) {
  return call_torch("aten::zero_", "", empty(sizes, options));
}

Tensor operator*(const Tensor& a, const Tensor& b) {
  return call_torch("aten::mul", "Tensor", a, b);
}

Tensor Tensor::contiguous() const {
  if (is_contiguous()) return *this;
  return clone();
}

Tensor Tensor::clone() const {
  return call_torch("aten::clone", "", *this,
                    std::optional(torch::headeronly::MemoryFormat::Contiguous));
}

Tensor Tensor::to(ScalarType type) const {
  if (scalar_type() == type) return *this;
  return call_torch("aten::to", "dtype", *this, type, false, false, kDefault);
}

Tensor Tensor::to(const Device& device, bool non_blocking) const {
  return call_torch("aten::to", "dtype_layout", *this, kDefault, kDefault,
                    std::optional<Device>(device), kDefault, non_blocking, true, kDefault);
}

Tensor Tensor::cpu() const { return is_cpu() ? *this : to(kCPU, false); }

Tensor Tensor::pin_memory() const { return call_torch("aten::pin_memory", "", *this, kDefault); }

void Tensor::copy_(const Tensor& from) const { call_torch("aten::copy_", "", *this, from, false); }

Tensor Tensor::view(IntArrayRef sizes) const { return call_torch("aten::view", "", *this, sizes); }

Tensor Tensor::t() const { return call_torch("aten::t", "", *this); }

Tensor Tensor::sum(IntArrayRef dims) const {
  return call_torch("aten::sum", "dim_IntList", *this, std::optional<IntArrayRef>(dims), false,
                    kDefault);
}

bool Tensor::is_inference() const { return call_torch<bool>("aten::is_inference", "", *this); }

int64_t Tensor::version() const { return call_torch<int64_t>("aten::_version", "", *this); }

}  // namespace ghn
