// Batch normalisation of channels-last images by the statistics of the batch, with an optional
// ReLU, on CPU.
//
// Floor: the forward pass reads x for the statistics, reads it again and writes the output; the
// backward pass reads the gradient and x twice and writes a gradient. In float32 these are 12 and
// 20 bytes per element, in bfloat16 half of that; a dozen flops per element go with them. Nothing
// but x, the mean and 1 / sqrt(variance + eps) is kept in between: where the ReLU gave 0 is
// computed anew.
//
// Statistics are taken of portions of pixels, whose number depends on the shape alone, and put
// together in double precision: the same bits for any number of threads. A portion is read from
// memory once, in float32 about a point near its mean.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <cmath>
#include <numeric>
#include <optional>

#include "batch_norm_act_kernels.h"
#include "images.h"

namespace ghn {
namespace {

// Rows of a portion: the statistics are 3 % of what it holds in float32.
constexpr int64_t kRows = 128;
// Elements that are worth a thread.
constexpr int64_t kGrain = int64_t(1) << 15;

// Pixels (pixels, channels) as rows that a kernel takes. With few channels there are several pixels
// to a row, so that vectors are full; each of its columns then has its own sums for a while. The
// last pixels, which fill no row, are a portion of their own: see Rest.
struct Rows {
  int64_t pixels, channels, per_row, width, rows, portions;

  Rows(int64_t pixels, int64_t channels, int64_t lanes) : pixels(pixels), channels(channels) {
    const int64_t whole = lanes / std::gcd(lanes, channels);
    per_row = channels < 2 * lanes ? whole : 1;
    width = per_row * channels;
    rows = pixels / per_row;
    portions = (rows + kRows - 1) / kRows;
  }

  int64_t rest() const { return pixels - rows * per_row; }
  int64_t first(int64_t portion) const { return portion * kRows; }
  int64_t count(int64_t portion) const { return std::min(kRows, rows - first(portion)); }

  // f(portion) for all portions, on threads; each thread goes down if `down`, beginning with what a
  // walk up has left in the caches.
  template <class F>
  void for_each(bool down, F f) const {
    const int64_t grain = std::max<int64_t>(1, kGrain / (kRows * width));
    at::parallel_for(0, portions, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) f(down ? begin + end - 1 - i : i);
    });
  }

  // Values per channel, repeated for every pixel of a row.
  std::vector<float> repeated(const std::vector<float>& values) const {
    std::vector<float> result(static_cast<size_t>(width));
    for (int64_t c = 0; c < width; ++c) result[size_t(c)] = values[size_t(c % channels)];
    return result;
  }
};

std::vector<float> floats_of(const at::Tensor& tensor) {
  const at::Tensor values = tensor.to(at::kFloat).contiguous();
  const float* data = values.const_data_ptr<float>();
  return {data, data + values.numel()};
}

// What all channels need, per column of a row.
struct Columns {
  std::vector<float> mean, scale, shift;

  Columns(const Rows& rows, const std::vector<float>& means, const std::vector<float>& invstd,
          const std::optional<at::Tensor>& weight, const std::optional<at::Tensor>& bias) {
    std::vector<float> scales = invstd;
    if (weight) {
      const std::vector<float> weights = floats_of(*weight);
      for (size_t c = 0; c < scales.size(); ++c) scales[c] *= weights[c];
    }
    mean = rows.repeated(means);
    scale = rows.repeated(scales);
    shift = rows.repeated(bias ? floats_of(*bias) : std::vector<float>(scales.size(), 0.0f));
  }

  BatchNormColumns pointers() const { return {mean.data(), scale.data(), shift.data()}; }
};

void check_channels(const std::optional<at::Tensor>& tensor, const at::Tensor& x,
                    const char* name) {
  if (!tensor) return;
  check_device(*tensor, at::kCPU, name);
  TORCH_CHECK_TYPE(tensor->scalar_type() == at::kFloat ||
                       tensor->scalar_type() == x.scalar_type(),
                   name, ": got ", tensor->scalar_type(), ", needs float32 or ", x.scalar_type());
  check_shape(*tensor, {x.size(1)}, name);
}

// The last pixels, which fill no row. Kernels take them as a row that is filled up.
template <class T>
struct Rest {
  const Rows& rows;
  int64_t first;  // element of the images

  explicit Rest(const Rows& rows) : rows(rows), first(rows.rows * rows.width) {}

  int64_t size() const { return rows.rest() * rows.channels; }

  // A row whose columns beyond the last pixel are zeros.
  std::vector<T> copy(const T* from) const {
    std::vector<T> row(static_cast<size_t>(rows.width), T(0.0f));
    std::copy_n(from + first, size(), row.data());
    return row;
  }
};

struct Statistics {
  std::vector<float> mean, variance;
};

template <class T>
Statistics statistics_of(const T* x, const Rows& rows) {
  const BatchNormKernels<T> kernels = batch_norm_kernels<T>();
  const size_t width = size_t(rows.width), channels = size_t(rows.channels);
  const Rest<T> rest(rows);
  // Means and squares of every portion, and of the rest, whose squares are zeros.
  const at::Tensor found = at::zeros({rows.portions + 1, 2, rows.width}, at::kDouble);
  double* data = found.data_ptr<double>();
  rows.for_each(false, [&](int64_t p) {
    double* to = data + 2 * p * rows.width;
    kernels.statistics(x + rows.first(p) * rows.width, rows.count(p), rows.width, to,
                       to + rows.width);
  });
  std::copy_n(x + rest.first, rest.size(), data + 2 * rows.portions * rows.width);
  // The mean of the means, then the squares about it.
  std::vector<double> mean(channels, 0.0), square(channels, 0.0), wide(width);
  const auto over_portions = [&](auto f) {
    for (int64_t p = 0; p <= rows.portions; ++p) {
      const bool last = p == rows.portions;
      const double count = last ? 1.0 : double(rows.count(p));
      const int64_t columns = last ? rest.size() : rows.width;
      const double* means = data + 2 * p * rows.width;
      for (int64_t c = 0; c < columns; ++c) f(c, count, means[c], means[rows.width + c]);
    }
  };
  const double all = double(rows.pixels);
  const auto fold = [&](std::vector<double>& to) {
    for (size_t c = 0; c < width; ++c) to[c % channels] += wide[c];
    for (double& value : to) value /= all;
  };
  std::fill(wide.begin(), wide.end(), 0.0);
  over_portions([&](int64_t c, double n, double m, double) { wide[size_t(c)] += n * m; });
  fold(mean);
  std::vector<double> means(width);
  for (size_t c = 0; c < width; ++c) means[c] = mean[c % channels];
  std::fill(wide.begin(), wide.end(), 0.0);
  over_portions([&](int64_t c, double n, double m, double q) {
    const double distance = m - means[size_t(c)];
    wide[size_t(c)] += q + n * distance * distance;
  });
  fold(square);
  return {{mean.begin(), mean.end()}, {square.begin(), square.end()}};
}

template <class T>
void normalise(const T* x, const Rows& rows, const Columns& columns, bool relu, T* out) {
  const BatchNormKernels<T> kernels = batch_norm_kernels<T>();
  rows.for_each(true, [&](int64_t p) {
    const int64_t at = rows.first(p) * rows.width;
    kernels.normalise(x + at, rows.count(p), rows.width, columns.pointers(), relu, out + at);
  });
  const Rest<T> rest(rows);
  if (rest.size() == 0) return;
  std::vector<T> last = rest.copy(x), made(last.size());
  kernels.normalise(last.data(), 1, rows.width, columns.pointers(), relu, made.data());
  std::copy_n(made.data(), rest.size(), out + rest.first);
}

// The sums of the gradient, and of the gradient times the distance from the mean, per channel.
template <class T>
void sums_of(const T* grad, const T* x, const Rows& rows, const Columns& columns, bool relu,
             std::vector<double>* sum, std::vector<double>* product) {
  const BatchNormKernels<T> kernels = batch_norm_kernels<T>();
  const at::Tensor found = at::empty({rows.portions + 1, 2, rows.width}, at::kFloat);
  float* data = found.data_ptr<float>();
  const auto sums = [&](const T* g, const T* from, int64_t count, int64_t p) {
    float* to = data + 2 * p * rows.width;
    kernels.sums(g, from, count, rows.width, columns.pointers(), relu, to, to + rows.width);
  };
  rows.for_each(false, [&](int64_t p) {
    const int64_t at = rows.first(p) * rows.width;
    sums(grad + at, x + at, rows.count(p), p);
  });
  const Rest<T> rest(rows);
  // Gradients of zero beyond the last pixel add nothing.
  sums(rest.copy(grad).data(), rest.copy(x).data(), 1, rows.portions);
  std::vector<double> wide(size_t(2 * rows.width), 0.0);
  for (int64_t p = 0; p <= rows.portions; ++p) {
    const float* from = data + 2 * p * rows.width;
    for (size_t c = 0; c < wide.size(); ++c) wide[c] += double(from[c]);
  }
  for (int64_t c = 0; c < rows.width; ++c) {
    (*sum)[size_t(c % rows.channels)] += wide[size_t(c)];
    (*product)[size_t(c % rows.channels)] += wide[size_t(rows.width + c)];
  }
}

template <class T>
void gradient(const T* grad, const T* x, const Rows& rows, const Columns& columns,
              const std::vector<float>& offset, const std::vector<float>& slope, bool relu,
              T* out) {
  const BatchNormKernels<T> kernels = batch_norm_kernels<T>();
  const std::vector<float> offsets = rows.repeated(offset), slopes = rows.repeated(slope);
  const auto make = [&](const T* g, const T* from, int64_t count, T* to) {
    kernels.gradient(g, from, count, rows.width, columns.pointers(), offsets.data(),
                     slopes.data(), relu, to);
  };
  rows.for_each(true, [&](int64_t p) {
    const int64_t at = rows.first(p) * rows.width;
    make(grad + at, x + at, rows.count(p), out + at);
  });
  const Rest<T> rest(rows);
  if (rest.size() == 0) return;
  std::vector<T> made(static_cast<size_t>(rows.width));
  make(rest.copy(grad).data(), rest.copy(x).data(), 1, made.data());
  std::copy_n(made.data(), rest.size(), out + rest.first);
}

template <class From>
void copy_to(const std::vector<From>& values, const at::Tensor& tensor) {
  std::copy(values.begin(), values.end(), tensor.data_ptr<float>());
}

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor> batch_norm_act_cpu(
    const at::Tensor& x, const std::optional<at::Tensor>& weight,
    const std::optional<at::Tensor>& bias, double eps, bool relu) {
  check_images(x, "x");
  check_channels(weight, x, "weight");
  check_channels(bias, x, "bias");
  const at::TensorOptions options = x.options().dtype(at::kFloat);
  const at::Tensor out = channels_last(x.sizes(), x);
  const at::Tensor mean = at::zeros({x.size(1)}, options), invstd = at::zeros({x.size(1)}, options);
  if (x.numel() == 0) return {out, mean, invstd};
  const at::Tensor from = x.contiguous(at::MemoryFormat::ChannelsLast);
  with_type(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const T* data = from.const_data_ptr<T>();
    const Rows rows(x.numel() / x.size(1), x.size(1), batch_norm_kernels<T>().lanes);
    const Statistics found = statistics_of(data, rows);
    std::vector<float> inverse;
    for (const float v : found.variance) inverse.push_back(float(1.0 / std::sqrt(double(v) + eps)));
    normalise(data, rows, Columns(rows, found.mean, inverse, weight, bias), relu,
              out.data_ptr<T>());
    copy_to(found.mean, mean);
    copy_to(inverse, invstd);
  });
  return {out, mean, invstd};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> batch_norm_act_backward_cpu(
    const at::Tensor& grad, const at::Tensor& x, const std::optional<at::Tensor>& weight,
    const std::optional<at::Tensor>& bias, const at::Tensor& mean, const at::Tensor& invstd,
    bool relu) {
  check_images(x, "x");
  check_images(grad, "grad");
  check_dtype(grad, x.scalar_type(), "grad");
  check_shape(grad, x.sizes(), "grad");
  check_channels(weight, x, "weight");
  check_channels(bias, x, "bias");
  check_channels(mean, x, "mean");
  check_channels(invstd, x, "invstd");
  const int64_t channels = x.size(1);
  const at::TensorOptions options = x.options().dtype(at::kFloat);
  const at::Tensor out = channels_last(x.sizes(), x);
  const at::Tensor grad_weight = at::zeros({channels}, options);
  const at::Tensor grad_bias = at::zeros({channels}, options);
  if (x.numel() == 0) return {out, grad_weight, grad_bias};
  const at::Tensor from = x.contiguous(at::MemoryFormat::ChannelsLast);
  const at::Tensor last = grad.contiguous(at::MemoryFormat::ChannelsLast);
  with_type(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const T *data = from.const_data_ptr<T>(), *gradients = last.const_data_ptr<T>();
    const Rows rows(x.numel() / channels, channels, batch_norm_kernels<T>().lanes);
    const std::vector<float> inverse = floats_of(invstd);
    const Columns columns(rows, floats_of(mean), inverse, weight, bias);
    std::vector<double> sum(size_t(channels), 0.0), product(size_t(channels), 0.0);
    sums_of(gradients, data, rows, columns, relu, &sum, &product);
    std::vector<float> offset, slope;
    for (size_t c = 0; c < size_t(channels); ++c) {
      const double scale = columns.scale[c], each = 1.0 / double(rows.pixels), i = inverse[c];
      offset.push_back(float(scale * sum[c] * each));
      slope.push_back(float(scale * i * i * product[c] * each));
      product[c] *= i;
    }
    gradient(gradients, data, rows, columns, offset, slope, relu, out.data_ptr<T>());
    copy_to(product, grad_weight);
    copy_to(sum, grad_bias);
  });
  return {out, grad_weight, grad_bias};
}

TORCH_LIBRARY_IMPL(ghn_fast, CPU, m) {
  m.impl("batch_norm_act", &batch_norm_act_cpu);
  m.impl("batch_norm_act_backward", &batch_norm_act_backward_cpu);
}

}  // namespace ghn
