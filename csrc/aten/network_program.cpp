#include "network_program.h"

#include <ATen/Functions.h>

#include <array>
#include <cmath>
#include <map>

#include "image_ops.h"
#include "images.h"

namespace ghn {
namespace {

constexpr double kDropout = 0.5;
// Pixels up to which attention in bfloat16 stores its weights.
constexpr int64_t kMostPixels = 256;
constexpr int64_t kSame = -1;  // padding that keeps the size

// How many sources, parameters and numbers an instruction has; -1 for one or more.
struct Lengths {
  int64_t sources, parameters, numbers;
};

constexpr std::array<Lengths, 23> kLengths{{
    {1, 1, 4},   // conv
    {1, 2, 1},   // norm
    {1, 0, 0},   // relu
    {1, 0, 2},   // max pool
    {1, 0, 2},   // avg pool
    {2, 0, 0},   // add
    {-1, 0, 0},  // cat
    {1, 0, 0},   // zeros
    {1, 0, 1},   // stride
    {1, 0, 0},   // shift
    {1, 0, 0},   // mean
    {1, -1, 0},  // linear
    {1, 0, 0},   // hardswish
    {2, 0, 0},   // gate
    {1, 0, 0},   // tokens
    {2, 0, 0},   // images
    {1, 2, 0},   // layer norm
    {1, 0, 1},   // attend
    {1, 0, 0},   // gelu
    {1, 0, 0},   // global pool
    {1, 0, 0},   // flatten
    {1, 0, 0},   // dropout
    {1, 1, 0},   // bias
}};

// Numbers that are sizes of something; torch does not check all of its own.
constexpr int64_t kMostNumber = int64_t(1) << 15;

bool sensible(Code code, const std::vector<int64_t>& n) {
  for (size_t i = 0; i < n.size(); ++i) {
    int64_t least = 1;
    if (code == Code::kNorm) least = 0;
    if (code == Code::kConv && i == 3) least = kSame;
    if (n[i] < least || n[i] > kMostNumber) return false;
  }
  return true;
}

bool fits(const std::vector<int64_t>& items, int64_t length) {
  return length < 0 ? !items.empty() : int64_t(items.size()) == length;
}

at::Tensor norm(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& shift, bool relu) {
  if (is_channels_last(x)) return batch_norm_act(x, scale, shift, kNormEps, relu);
  const at::Tensor y = at::batch_norm(x, scale, shift, {}, {}, true, 0.0, kNormEps, false);
  return relu ? at::relu(y) : y;
}

at::Tensor shift(const at::Tensor& x) {
  const int64_t bottom = x.size(2) % 2, right = x.size(3) % 2;
  const at::Tensor even =
      bottom || right ? at::constant_pad_nd(x, {0, right, 0, bottom}) : x;
  return even.slice(2, 1).slice(3, 1);
}

// As ghn_fast.ops.network_program.attention.
at::Tensor attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value) {
  if (query.scalar_type() != at::kBFloat16) {
    return at::scaled_dot_product_attention(query, key, value);
  }
  if (query.size(2) > kMostPixels) {
    const auto wide = [](const at::Tensor& t) { return t.to(at::kFloat); };
    return at::scaled_dot_product_attention(wide(query), wide(key), wide(value))
        .to(query.scalar_type());
  }
  const at::Tensor q = query.flatten(0, 1), k = key.flatten(0, 1), v = value.flatten(0, 1);
  const double scale = 1.0 / std::sqrt(double(q.size(-1)));
  const at::Tensor scores =
      at::baddbmm(q.new_zeros({}), q, k.transpose(1, 2), /*beta=*/0, /*alpha=*/scale);
  return at::bmm(at::softmax(scores, -1), v).view(value.sizes());
}

at::Tensor attend(const at::Tensor& qkv, int64_t heads) {
  const int64_t batch = qkv.size(0), tokens = qkv.size(1);
  TORCH_CHECK_VALUE(heads > 0 && qkv.size(2) % (3 * heads) == 0, "program: got attention of ",
                    heads, " heads for ", qkv.size(2), " channels");
  const std::vector<at::Tensor> parts = qkv.chunk(3, -1);
  const auto split = [&](const at::Tensor& part) {
    return part.reshape({batch, tokens, heads, -1}).transpose(1, 2);
  };
  const at::Tensor found = attention(split(parts[0]), split(parts[1]), split(parts[2]));
  return found.transpose(1, 2).reshape({batch, tokens, -1});
}

at::Tensor dropout(const at::Tensor& x, const std::optional<at::Generator>& generator) {
  const at::Tensor mask = at::empty_like(x).bernoulli_(1 - kDropout, generator);
  return at::mul(x, mask.div_(1 - kDropout));
}

at::Tensor linear(const at::Tensor& x, const std::vector<at::Tensor>& w) {
  if (w.size() == 1) return at::linear(x, w[0]);
  return at::linear(x, w[0], w[1].to(w[0].scalar_type()));
}

}  // namespace

at::Tensor run_instruction(const Instruction& step, const std::vector<at::Tensor>& x,
                           const std::vector<at::Tensor>& w,
                           const std::optional<at::Generator>& generator) {
  const std::vector<int64_t>& n = step.numbers;
  switch (step.code) {
    case Code::kConv: return Convolution(x[0], w[0], n).forward();
    case Code::kNorm: return norm(x[0], w[0], w[1], n[0] != 0);
    case Code::kRelu: return at::relu(x[0]);
    case Code::kMaxPool: return at::max_pool2d(x[0], n[0], n[1], n[0] / 2);
    case Code::kAvgPool: return at::avg_pool2d(x[0], n[0], n[1], n[0] / 2, false, false);
    case Code::kAdd: return at::add(x[0], x[1]);
    case Code::kCat: return at::cat(x, 1);
    case Code::kZeros: return at::zeros_like(x[0]);
    case Code::kStride: return x[0].slice(2, 0, {}, n[0]).slice(3, 0, {}, n[0]);
    case Code::kShift: return shift(x[0]);
    case Code::kMean: return x[0].flatten(2).mean(2);
    case Code::kLinear: return linear(x[0], w);
    case Code::kHardswish: return at::hardswish(x[0]);
    case Code::kGate: return at::mul(x[0], x[1].unsqueeze(-1).unsqueeze(-1));
    case Code::kTokens: return x[0].flatten(2).permute({0, 2, 1});
    case Code::kImages: return x[0].permute({0, 2, 1}).view(x[1].sizes());
    case Code::kLayerNorm: return at::layer_norm(x[0], w[0].sizes(), w[0], w[1], kNormEps);
    case Code::kAttend: return attend(x[0], n[0]);
    case Code::kGelu: return at::gelu(x[0]);
    case Code::kGlobalPool: return at::adaptive_avg_pool2d(x[0], {1, 1});
    case Code::kFlatten: return x[0].flatten(1);
    case Code::kDropout: return dropout(x[0], generator);
    case Code::kBias: return at::add(x[0], w[0]);
  }
  TORCH_CHECK_VALUE(false, "program: got an unknown instruction");
}

Convolution::Convolution(const at::Tensor& x, const at::Tensor& weight,
                         const std::vector<int64_t>& numbers)
    : x_(x),
      weight_(weight),
      kernels_(weight),
      stride_{numbers[0], numbers[1]},
      padding_{numbers[3], numbers[3]},
      dilation_{numbers[2], numbers[2]} {
  TORCH_CHECK_VALUE(x.dim() == 4 && weight.dim() == 4, "program: got a convolution of ", x.sizes(),
                    " with kernels ", weight.sizes(), ", needs images and kernels");
  if (numbers[3] == kSame) {
    for (size_t axis = 0; axis < 2; ++axis) {
      padding_[axis] = weight.size(2 + int64_t(axis)) / 2 * dilation_[axis];
    }
  }
  depthwise_ = weight.size(1) == 1 && x.size(1) > 1 && is_channels_last(x);
  if (!depthwise_ && weight.size(1) == x.size(1) && dilation_[0] == 1) leave_out_far_taps();
  // As oneDNN takes it; both passes would make a copy of their own.
  if (!depthwise_ && is_channels_last(x)) {
    kernels_ = kernels_.contiguous(at::MemoryFormat::ChannelsLast);
  }
}

// Small images meet the middle of large kernels only. oneDNN 3.12 gives wrong gradients of the rest
// in bfloat16, and computes with it.
void Convolution::leave_out_far_taps() {
  for (size_t axis = 0; axis < 2; ++axis) {
    const int64_t at = 2 + int64_t(axis), size = x_.size(at), far = padding_[axis] - (size - 1);
    if (far > 0 && weight_.size(at) == 2 * padding_[axis] + 1) {
      kernels_ = kernels_.narrow(at, far, 2 * size - 1);
      padding_[axis] = size - 1;
      first_[axis] = far;
    }
  }
}

at::Tensor Convolution::forward() const {
  if (depthwise_) {
    return depthwise_conv2d(x_, kernels_.to(x_.scalar_type()), stride_, padding_, dilation_);
  }
  TORCH_CHECK_VALUE(weight_.size(1) > 0, "program: got kernels ", weight_.sizes(),
                    ", needs some channels");
  return at::conv2d(x_, kernels_, {}, stride_, padding_, dilation_, x_.size(1) / weight_.size(1));
}

std::pair<at::Tensor, at::Tensor> Convolution::gradients(const at::Tensor& gradient,
                                                         bool of_input) const {
  if (depthwise_) {
    const at::Tensor kernels = kernels_.to(x_.scalar_type());
    at::Tensor x;
    if (of_input) {
      x = depthwise_conv2d_grad_input_cpu(gradient, kernels, x_.size(2), x_.size(3), stride_,
                                          padding_, dilation_);
    }
    return {x, depthwise_conv2d_grad_weight_cpu(gradient, x_, weight_.size(2), weight_.size(3),
                                                stride_, padding_, dilation_)};
  }
  auto [x, kernels, bias] = at::convolution_backward(
      gradient, x_, kernels_, at::OptionalIntArrayRef(), stride_, padding_, dilation_,
      /*transposed=*/false, /*output_padding=*/Pair{0, 0}, x_.size(1) / weight_.size(1),
      {of_input, true, false});
  if (first_ == Pair{0, 0}) return {x, kernels};
  const at::Tensor all = at::zeros_like(weight_);
  all.narrow(2, first_[0], kernels.size(2)).narrow(3, first_[1], kernels.size(3)).copy_(kernels);
  return {x, all};
}

std::vector<Instruction> unpack_program(at::IntArrayRef packed, int64_t parameters) {
  std::vector<Instruction> program;
  size_t at = 0;
  const auto next = [&] {
    TORCH_CHECK_VALUE(at < packed.size(), "program: it ends within an instruction");
    return packed[at++];
  };
  const auto list = [&](int64_t limit, const char* what) {
    const int64_t count = next();
    TORCH_CHECK_VALUE(count >= 0 && count <= int64_t(packed.size()), "program: got ", count, " ",
                      what);
    std::vector<int64_t> items;
    for (int64_t i = 0; i < count; ++i) {
      items.push_back(next());
      TORCH_CHECK_VALUE(limit < 0 || (items.back() >= 0 && items.back() < limit),
                        "program: instruction ", program.size(), " reads one of ", what,
                        " that is not there, ", items.back());
    }
    return items;
  };
  std::map<int64_t, size_t> last;
  while (at < packed.size()) {
    const int64_t code = next();
    TORCH_CHECK_VALUE(code >= 0 && code < int64_t(kLengths.size()),
                      "program: got the unknown instruction ", code);
    Instruction step{Code(code), {}, {}, {}, {}};
    step.sources = list(int64_t(program.size()) + 1, "values");
    step.parameters = list(parameters, "parameters");
    step.numbers = list(-1, "numbers");
    const Lengths& lengths = kLengths[size_t(code)];
    TORCH_CHECK_VALUE(fits(step.sources, lengths.sources) &&
                          fits(step.parameters, lengths.parameters) &&
                          fits(step.numbers, lengths.numbers),
                      "program: instruction ", program.size(), " with code ", code,
                      " has too many or too few values, parameters or numbers");
    TORCH_CHECK_VALUE(sensible(step.code, step.numbers), "program: instruction ", program.size(),
                      " with code ", code, " got a number out of range");
    for (const int64_t source : step.sources) last[source] = program.size();
    program.push_back(std::move(step));
  }
  TORCH_CHECK_VALUE(!program.empty(), "program: got none");
  for (const auto& [value, step] : last) program[step].ends.push_back(value);
  return program;
}

}  // namespace ghn
