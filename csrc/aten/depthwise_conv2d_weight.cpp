// The gradient of the weights of a depthwise convolution on CPU. Its floor and how images pass are
// described in depthwise_conv2d.cpp.
//
// Sums are taken image by image over a fixed number of parts of the batch, then over these in
// double precision: the same bits for any number of threads.
#include <ATen/Parallel.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <cstring>
#include <vector>

#include "depthwise_conv2d.h"
#include "depthwise_conv2d_kernels.h"
#include "images.h"

namespace ghn {
namespace {

// Partial sums of the gradient of the weights.
constexpr int64_t kParts = 32;

// The gradient of the weights: grad (N, out, out, C), x (N, in, in, C) -> (C, taps).
template <class T>
class WeightGradient {
 public:
  explicit WeightGradient(const Shapes& shapes)
      : kernels_(depthwise_kernels<T>()),
        s_(shapes),
        blocks_(divide_up(shapes.channels, kernels_.lanes)),
        parts_(std::min(shapes.images, kParts)),
        width_(std::max((s_.columns.out - 1) * s_.columns.stride +
                            (s_.columns.taps - 1) * s_.columns.dilation + 1,
                        s_.columns.padding + s_.columns.in)) {
    for (int64_t h = 0; h < s_.rows.taps; ++h) {
      for (int64_t w = 0; w < s_.columns.taps; ++w) {
        offsets_.push_back((h * s_.rows.dilation * width_ + w * s_.columns.dilation) *
                           kernels_.lanes);
      }
    }
    const int64_t span = (s_.rows.taps - 1) * s_.rows.dilation + 1;
    const int64_t fit = kScratch / (width_ * kernels_.lanes);
    band_ = std::clamp<int64_t>((fit - span) / s_.rows.stride + 1, 1, s_.rows.out);
    x_block_ = ((band_ - 1) * s_.rows.stride + span) * width_ * kernels_.lanes;
    group_ = std::clamp<int64_t>(kScratch / x_block_, 1, blocks_);
  }

  void run(const T* grad, const T* x, T* to) const {
    const int64_t lanes = kernels_.lanes, groups = divide_up(blocks_, group_);
    const at::Tensor sums = at::zeros({parts_, blocks_, s_.taps(), lanes}, at::kFloat);
    const int64_t products = group_ * lanes * s_.rows.out * s_.columns.out * s_.taps() *
                             divide_up(s_.images, parts_);
    const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(products, 1));
    at::parallel_for(0, parts_ * groups, grain, [&](int64_t begin, int64_t end) {
      const at::Tensor scratch = at::zeros({group_ * x_block_}, at::kFloat);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t part = task / groups, first = task % groups * group_;
        float* to_part = sums.data_ptr<float>() + (part * blocks_ + first) * s_.taps() * lanes;
        const int64_t last_image = (part + 1) * s_.images / parts_;
        for (int64_t image = part * s_.images / parts_; image < last_image; ++image) {
          for (int64_t row = 0; row < s_.rows.out; row += band_) {
            add(grad, x, image, first, row, scratch.data_ptr<float>(), to_part);
          }
        }
      }
    });
    join(sums, to);
  }

 private:
  // Adds what output rows [row, row + band_) of an image contribute to a group of blocks.
  void add(const T* grad, const T* x, int64_t image, int64_t first, int64_t row, float* scratch,
           float* sums) const {
    const int64_t lanes = kernels_.lanes, c = first * lanes;
    const int64_t channels = std::min(group_ * lanes, s_.channels - c);
    const int64_t rows = std::min(band_, s_.rows.out - row);
    const int64_t origin = row * s_.rows.stride - s_.rows.padding;
    const int64_t x_rows = (rows - 1) * s_.rows.stride + (s_.rows.taps - 1) * s_.rows.dilation + 1;
    fill_x(x, image, c, channels, origin, x_rows, scratch);
    const int64_t pixel = (image * s_.rows.out + row) * s_.columns.out;
    const int64_t end = s_.images * s_.rows.out * s_.columns.out * s_.channels;
    DepthwiseSums<T> call;
    call.columns = s_.columns.out;
    call.x_row = s_.rows.stride * width_ * lanes;
    call.x_step = s_.columns.stride * lanes;
    for (int64_t b = 0; b * lanes < channels; ++b) {
      const int64_t at = pixel * s_.channels + c + b * lanes;
      const int64_t last = at + (rows * s_.columns.out - 1) * s_.channels + lanes;
      std::vector<T> copy;  // where the last vector would end beyond the gradient
      if (last > end) {
        copy.resize(size_t(rows * s_.columns.out * lanes), T(0.0f));
        for (int64_t i = 0; i < rows * s_.columns.out; ++i) {
          std::copy_n(grad + at + i * s_.channels, channels - b * lanes, copy.data() + i * lanes);
        }
      }
      call.grad_step = copy.empty() ? s_.channels : lanes;
      call.grad_row = s_.columns.out * call.grad_step;
      add_block(call, copy.empty() ? grad + at : copy.data(), scratch + b * x_block_, origin, rows,
                sums + b * s_.taps() * lanes);
    }
  }

  void add_block(DepthwiseSums<T> call, const T* grad, const float* x, int64_t origin, int64_t rows,
                 float* sums) const {
    const int64_t taps = s_.taps(), calls = divide_up(taps, DepthwiseKernels<T>::kMostTaps);
    for (int64_t i = 0; i < calls; ++i) {
      const int64_t begin = i * taps / calls, end = (i + 1) * taps / calls;
      // Rows of which no tap reads anything but zeros are left out.
      const int64_t top = begin / s_.columns.taps * s_.rows.dilation + origin;
      const int64_t bottom = (end - 1) / s_.columns.taps * s_.rows.dilation + origin;
      const int64_t from = std::max<int64_t>(0, divide_up(-bottom, s_.rows.stride));
      const int64_t to = std::min(rows, divide_up(s_.rows.in - top, s_.rows.stride));
      call.offsets = offsets_.data() + begin;
      call.num_taps = int(end - begin);
      call.rows = to - from;
      call.x = x + from * call.x_row;
      call.grad = grad + from * call.grad_row;
      call.sums = sums + begin * kernels_.lanes;
      if (from < to) kernels_.gradient(call);
    }
  }

  // The rows that are read, those outside of the image as zeros.
  void fill_x(const T* x, int64_t image, int64_t c, int64_t channels, int64_t origin, int64_t rows,
              float* scratch) const {
    const int64_t lanes = kernels_.lanes, size = s_.columns.in * s_.channels;
    const T* end = x + s_.images * s_.rows.in * size;
    for (int64_t i = 0; i < rows; ++i) {
      float* to = scratch + i * width_ * lanes;
      if (origin + i >= 0 && origin + i < s_.rows.in) {
        kernels_.fill(x + (image * s_.rows.in + origin + i) * size + c, end, s_.channels,
                      s_.columns.in, channels, to + s_.columns.padding * lanes, x_block_);
        continue;
      }
      for (int64_t b = 0; b * lanes < channels; ++b) {
        std::memset(to + b * x_block_, 0, size_t(width_ * lanes) * sizeof(float));
      }
    }
  }

  void join(const at::Tensor& sums, T* to) const {
    const int64_t lanes = kernels_.lanes, taps = s_.taps();
    const float* from = sums.const_data_ptr<float>();
    std::vector<double> total(lanes);
    for (int64_t b = 0; b < blocks_; ++b) {
      const int64_t channels = std::min(lanes, s_.channels - b * lanes);
      for (int64_t t = 0; t < taps; ++t) {
        std::fill(total.begin(), total.end(), 0.0);
        for (int64_t part = 0; part < parts_; ++part) {
          const float* values = from + ((part * blocks_ + b) * taps + t) * lanes;
          for (int64_t i = 0; i < lanes; ++i) total[size_t(i)] += double(values[i]);
        }
        for (int64_t i = 0; i < channels; ++i) {
          to[(b * lanes + i) * taps + t] = T(float(total[size_t(i)]));
        }
      }
    }
  }

  const DepthwiseKernels<T> kernels_;
  const Shapes s_;
  const int64_t blocks_, parts_;
  const int64_t width_;  // columns of x with the zeros around it
  std::vector<int64_t> offsets_;
  int64_t band_;  // output rows that are summed up together
  int64_t x_block_, group_;
};

}  // namespace

at::Tensor depthwise_conv2d_grad_weight_cpu(const at::Tensor& grad, const at::Tensor& x,
                                            int64_t height, int64_t width, at::IntArrayRef stride,
                                            at::IntArrayRef padding, at::IntArrayRef dilation) {
  check_images(x, "x");
  check_images(grad, "grad");
  check_dtype(grad, x.scalar_type(), "grad");
  const Shapes s = shapes_of(x.sizes(), {height, width}, stride, padding, dilation);
  check_shape(grad, {s.images, s.channels, s.rows.out, s.columns.out}, "grad");
  if (x.numel() == 0) return at::zeros({s.channels, 1, height, width}, x.options());
  const at::Tensor out = at::empty({s.channels, 1, height, width}, x.options());
  const at::Tensor from = x.contiguous(at::MemoryFormat::ChannelsLast);
  const at::Tensor last = grad.contiguous(at::MemoryFormat::ChannelsLast);
  with_type(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const WeightGradient<T> gradient(s);
    gradient.run(last.const_data_ptr<T>(), from.const_data_ptr<T>(), out.data_ptr<T>());
  });
  return out;
}

TORCH_LIBRARY_IMPL(ghn_fast, CPU, m) {
  m.impl("depthwise_conv2d_grad_weight", &depthwise_conv2d_grad_weight_cpu);
}

}  // namespace ghn
