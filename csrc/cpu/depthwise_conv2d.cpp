// Depthwise convolution of channels-last images on CPU, and its gradients.
//
// Floor, for B images of C channels, H x W pixels in and out, K taps: the inputs are read and the
// outputs written once, 8 B C H W bytes in float32 and 4 in bfloat16, and each of three passes
// (forward, both gradients) takes B C H W K products. One core of a Zen 4 makes one vector of 16
// products a cycle. So 5 x 5 taps over 64 images of 64 channels, 16 x 16 pixels, are 1.6 M cycles,
// about as long as 8 MB take at 19 GB/s: products are the floor for 5 x 5 and larger, the memory for
// 3 x 3 and smaller, and bfloat16 saves bytes but no products.
//
// An image's channels pass in blocks of one vector. A block is spread out in float32 with the zeros
// of the padding around it, so that the inner loops know no edges; it stays in the caches until all
// of its taps are used. The taps of a row above or below the image are left out.
//
// Every output is a sum in the order of its taps, whatever is computed beside it. The gradient of
// the weights is summed image by image over a fixed number of parts, then over these in double
// precision: the same bits for any number of threads.
#include <ATen/Parallel.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include <cstring>

#include "../common/checks.h"
#include "depthwise_conv2d_axis.h"
#include "depthwise_conv2d_kernels.h"
#include "isa.h"

namespace ghn {
namespace {

// A block's images, or as many rows of them as fit, are spread out in so many floats.
constexpr int64_t kScratch = 12 * 1024;
// Products that are worth a thread.
constexpr int64_t kGrain = int64_t(1) << 17;
// Partial sums of the gradient of the weights.
constexpr int64_t kParts = 64;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// What all three ops agree on: the sizes of images before and after.
struct Shapes {
  int64_t images, channels;
  Axis rows, columns;  // of the forward pass

  int64_t taps() const { return rows.taps * columns.taps; }
};

int64_t output_size(int64_t in, int64_t taps, int64_t stride, int64_t padding, int64_t dilation) {
  return (in + 2 * padding - dilation * (taps - 1) - 1) / stride + 1;
}

Axis axis_of(int64_t in, int64_t taps, int64_t stride, int64_t padding, int64_t dilation,
             const char* name) {
  // Beyond these, positions would not fit in 64 bits, nor images in memory.
  static constexpr int64_t kMost = int64_t(1) << 30;
  const auto check = [](const char* what, int64_t got, int64_t least) {
    TORCH_CHECK_VALUE(got >= least && got <= kMost, what, ": got ", got, ", needs ", least, " to ",
                      kMost);
  };
  check("size of the images", in, 0);
  check("size of the kernels", taps, 1);
  check("stride", stride, 1);
  check("padding", padding, 0);
  check("dilation", dilation, 1);
  TORCH_CHECK_VALUE(in + 2 * padding > dilation * (taps - 1), "x: got ", in, " ", name,
                    ", with padding ", in + 2 * padding, ", needs at least ",
                    dilation * (taps - 1) + 1, ", as many as a kernel spans");
  return {in, output_size(in, taps, stride, padding, dilation), taps, stride, padding, dilation,
          false};
}

Axis transposed(Axis axis) {
  std::swap(axis.in, axis.out);
  axis.transposed = true;
  return axis;
}

Shapes shapes_of(at::IntArrayRef x, at::IntArrayRef kernel, at::IntArrayRef stride,
                 at::IntArrayRef padding, at::IntArrayRef dilation) {
  TORCH_CHECK_VALUE(x.size() == 4, "x: got shape ", x, ", needs (N, C, H, W)");
  for (const at::IntArrayRef pair : {kernel, stride, padding, dilation}) {
    TORCH_CHECK_VALUE(pair.size() == 2, "kernel size, stride, padding and dilation: got ", pair,
                      ", needs two numbers");
  }
  return {x[0], x[1], axis_of(x[2], kernel[0], stride[0], padding[0], dilation[0], "rows"),
          axis_of(x[3], kernel[1], stride[1], padding[1], dilation[1], "columns")};
}

void check_images(const at::Tensor& tensor, const char* name) {
  check_device(tensor, at::kCPU, name);
  TORCH_CHECK_TYPE(tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kBFloat16,
                   name, ": got ", tensor.scalar_type(), ", needs float32 or bfloat16");
  TORCH_CHECK_VALUE(tensor.dim() == 4, name, ": got shape ", tensor.sizes(),
                    ", needs (N, C, H, W)");
}

void check_weight(const at::Tensor& weight, const at::Tensor& images, int64_t channels) {
  check_device(weight, at::kCPU, "weight");
  check_dtype(weight, images.scalar_type(), "weight");
  TORCH_CHECK_VALUE(weight.dim() == 4 && weight.size(0) == channels && weight.size(1) == 1,
                    "weight: got shape ", weight.sizes(), ", needs (", channels,
                    ", 1, height, width)");
}

at::Tensor channels_last(at::IntArrayRef sizes, const at::Tensor& like) {
  return at::empty(sizes, like.options().memory_format(at::MemoryFormat::ChannelsLast));
}

// [block][tap][lane], zeros in lanes without a channel.
template <class T>
at::Tensor pack_weight(const at::Tensor& weight, int64_t lanes) {
  const at::Tensor values = weight.contiguous();
  const int64_t channels = weight.size(0), taps = weight.size(2) * weight.size(3);
  at::Tensor packed = at::zeros({divide_up(channels, lanes), taps, lanes}, at::kFloat);
  const T* from = values.const_data_ptr<T>();
  float* to = packed.data_ptr<float>();
  for (int64_t c = 0; c < channels; ++c) {
    float* column = to + c / lanes * taps * lanes + c % lanes;
    for (int64_t t = 0; t < taps; ++t) column[t * lanes] = float(*from++);
  }
  return packed;
}

// The taps of a class of output rows and one of output columns, by row of the kernel.
struct TapList {
  std::vector<Tap> taps;
  std::vector<int64_t> rows;  // that the first output row of the class reads
  int64_t row_class, column_class, per_row = 0;

  TapList(const Axis& rows_axis, const Axis& columns_axis, int64_t row_class, int64_t column_class,
          int64_t left, int64_t width, int64_t lanes)
      : row_class(row_class), column_class(column_class) {
    int64_t row, column;
    for (int64_t h = 0; h < rows_axis.taps; ++h) {
      if (!rows_axis.position(row_class, h, &row)) continue;
      rows.push_back(row);
      for (int64_t w = 0; w < columns_axis.taps; ++w) {
        if (!columns_axis.position(column_class, w, &column)) continue;
        taps.push_back({(row * width + column + left) * lanes, (h * columns_axis.taps + w) * lanes});
      }
    }
    per_row = rows.empty() ? 0 : int64_t(taps.size() / rows.size());
  }
};

// A convolution, or the gradient of its input: images (N, in, in, C) -> (N, out, out, C).
template <class T>
class Convolution {
 public:
  Convolution(const Axis& rows, const Axis& columns, int64_t images, int64_t channels,
              const at::Tensor& weight)
      : kernels_(depthwise_kernels<T>()),
        rows_(rows),
        columns_(columns),
        images_(images),
        channels_(channels),
        blocks_(divide_up(channels, kernels_.lanes)),
        weight_(pack_weight<T>(weight, kernels_.lanes)) {
    const Range range = range_of(columns, 0, columns.out, false);
    left_ = std::max<int64_t>(0, -range.first);
    width_ = left_ + std::max(columns.in, range.last + 1);
    for (int64_t r = 0; r < rows.classes(); ++r) {
      for (int64_t c = 0; c < columns.classes(); ++c) {
        lists_.emplace_back(rows, columns, r, c, left_, width_, kernels_.lanes);
      }
    }
    divide();
  }

  void run(const T* from, T* to) const {
    const int64_t parts = int64_t(bands_.size()), groups = divide_up(blocks_, group_);
    const int64_t products = group_ * kernels_.lanes * rows_.taps * columns_.taps *
                             divide_up(rows_.in * columns_.in, parts);
    const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(products, 1));
    at::parallel_for(0, images_ * groups * parts, grain, [&](int64_t begin, int64_t end) {
      // Nothing is ever written to the columns of zeros on both sides.
      const at::Tensor scratch = at::zeros({group_ * block_}, at::kFloat);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t image = task / (groups * parts), group = task / parts % groups;
        const Band& band = bands_[size_t(task % parts)];
        fill(from, image, group, band, scratch.data_ptr<float>());
        write(scratch.const_data_ptr<float>(), image, group, band, to);
      }
    });
  }

 private:
  struct Band {
    int64_t first, last;  // output rows
    Range rows;           // that they read
  };

  // Blocks that are spread out together, and rows where a block is too large for the caches.
  void divide() {
    const int64_t fit = std::max<int64_t>(kScratch / (width_ * kernels_.lanes), 1);
    int64_t step = rows_.out;
    if (rows_.in > fit) {
      const int64_t span = rows_.dilation * (rows_.taps - 1);
      step = rows_.transposed ? fit * rows_.stride - span : (fit - span) / rows_.stride;
      step = std::clamp<int64_t>(step, 1, rows_.out);
    }
    int64_t most = 1;
    for (int64_t first = 0; first < rows_.out; first += step) {
      const int64_t last = std::min(first + step, rows_.out);
      bands_.push_back({first, last, range_of(rows_, first, last, true)});
      most = std::max(most, bands_.back().rows.size());
    }
    block_ = most * width_ * kernels_.lanes;
    group_ = std::clamp<int64_t>(kScratch / block_, 1, blocks_);
  }

  void fill(const T* from, int64_t image, int64_t group, const Band& band, float* scratch) const {
    const int64_t c = group * group_ * kernels_.lanes;
    const int64_t channels = std::min(group_ * kernels_.lanes, channels_ - c);
    const int64_t row_size = columns_.in * channels_;
    const T* end = from + images_ * rows_.in * row_size;
    float* to = scratch + left_ * kernels_.lanes;
    for (int64_t row = band.rows.first; row <= band.rows.last; ++row) {
      kernels_.fill(from + (image * rows_.in + row) * row_size + c, end, channels_, columns_.in,
                    channels, to, block_);
      to += width_ * kernels_.lanes;
    }
  }

  void write(const float* scratch, int64_t image, int64_t group, const Band& band, T* to) const {
    const int64_t classes = rows_.classes();
    to += image * rows_.out * columns_.out * channels_;
    for (size_t i = 0; i < lists_.size(); ++i) {
      const TapList& list = lists_[i];
      // Rows of the class from the band's first on, in runs of the same taps.
      int64_t row = band.first + (list.row_class - band.first % classes + classes) % classes;
      while (row < band.last) {
        const auto [begin, end] = there(list, row);
        int64_t next = row + classes;
        while (next < band.last && there(list, next) == std::pair(begin, end)) next += classes;
        const int64_t moved = row / classes * rows_.step() - band.rows.first;
        const float* x = end > begin ? scratch + moved * width_ * kernels_.lanes : scratch;
        write_rows(list, begin, end, x, group, (next - row) / classes,
                   to + (row * columns_.out + list.column_class) * channels_);
        row = next;
      }
    }
  }

  // Which rows of the list's kernel lie in the image for an output row: they are next to each other.
  std::pair<int64_t, int64_t> there(const TapList& list, int64_t row) const {
    const int64_t moved = row / rows_.classes() * rows_.step();
    const auto inside = [&](int64_t r) { return r + moved >= 0 && r + moved < rows_.in; };
    const auto begin = std::find_if(list.rows.begin(), list.rows.end(), inside);
    const auto end = std::find_if_not(begin, list.rows.end(), inside);
    return {begin - list.rows.begin(), end - list.rows.begin()};
  }

  void write_rows(const TapList& list, int64_t begin, int64_t end, const float* x, int64_t group,
                  int64_t count, T* to) const {
    const int64_t lanes = kernels_.lanes, first = group * group_;
    DepthwiseRows<T> rows;
    rows.taps = list.taps.data() + begin * list.per_row;
    rows.num_taps = (end - begin) * list.per_row;
    rows.rows = count;
    rows.columns = columns_.outputs(list.column_class);
    rows.x_row = rows_.step() * width_ * lanes;
    rows.x_step = columns_.step() * lanes;
    rows.out_row = rows_.classes() * columns_.out * channels_;
    rows.out_step = columns_.classes() * channels_;
    for (int64_t b = first; b < std::min(first + group_, blocks_); ++b) {
      rows.x = x + (b - first) * block_;
      rows.weight = weight_.const_data_ptr<float>() + b * weight_.stride(0);
      rows.out = to + b * lanes;
      rows.used = int(std::min(lanes, channels_ - b * lanes));
      kernels_.convolve(rows);
    }
  }

  const DepthwiseKernels<T> kernels_;
  const Axis rows_, columns_;
  const int64_t images_, channels_, blocks_;
  const at::Tensor weight_;
  int64_t left_, width_;  // columns of zeros on the left, and all columns
  int64_t block_, group_;  // floats of a block, blocks that are spread out together
  std::vector<TapList> lists_;
  std::vector<Band> bands_;
};

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

// Whether oneDNN's kernel is the faster one: it reads the images where they lie, which pays where
// there is more to do than to call it. Its outputs, too, are sums in the order of the taps.
bool better_by_torch(const Shapes& s, at::ScalarType type) {
  // Without the instructions, or where zeros are most of what a kernel sees, it is a plain loop.
  const bool fits = s.rows.padding <= s.rows.in && s.columns.padding <= s.columns.in;
  const bool fast = isa() == Isa::avx512 || (isa() == Isa::avx2 && type == at::kFloat);
  constexpr int64_t kEnough = int64_t(1) << 16;
  return fast && fits && s.images * s.channels * s.rows.out * s.columns.out >= kEnough;
}

at::Tensor by_torch(const at::Tensor& x, const at::Tensor& weight, const Shapes& s) {
  // This call is below autocast, which must not change its types.
  const c10::impl::ExcludeDispatchKeyGuard guard(c10::autocast_dispatch_keyset);
  return at::conv2d(x, weight, {}, {s.rows.stride, s.columns.stride},
                    {s.rows.padding, s.columns.padding}, {s.rows.dilation, s.columns.dilation},
                    s.channels)
      .contiguous(at::MemoryFormat::ChannelsLast);
}

template <class F>
void with_type(at::ScalarType type, F f) {
  type == at::kFloat ? f(float{}) : f(c10::BFloat16{});
}

}  // namespace

at::Tensor depthwise_conv2d_cpu(const at::Tensor& x, const at::Tensor& weight,
                                at::IntArrayRef stride, at::IntArrayRef padding,
                                at::IntArrayRef dilation) {
  check_images(x, "x");
  check_weight(weight, x, x.size(1));
  const Shapes s = shapes_of(x.sizes(), weight.sizes().slice(2), stride, padding, dilation);
  const at::Tensor out = channels_last({s.images, s.channels, s.rows.out, s.columns.out}, x);
  if (out.numel() == 0) return out;
  const at::Tensor from = x.contiguous(at::MemoryFormat::ChannelsLast);
  if (better_by_torch(s, x.scalar_type())) return by_torch(from, weight, s);
  with_type(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const Convolution<T> convolution(s.rows, s.columns, s.images, s.channels, weight);
    convolution.run(from.const_data_ptr<T>(), out.data_ptr<T>());
  });
  return out;
}

at::Tensor depthwise_conv2d_grad_input_cpu(const at::Tensor& grad, const at::Tensor& weight,
                                           int64_t height, int64_t width, at::IntArrayRef stride,
                                           at::IntArrayRef padding, at::IntArrayRef dilation) {
  check_images(grad, "grad");
  check_weight(weight, grad, grad.size(1));
  const Shapes s = shapes_of({grad.size(0), grad.size(1), height, width}, weight.sizes().slice(2),
                             stride, padding, dilation);
  check_shape(grad, {s.images, s.channels, s.rows.out, s.columns.out}, "grad");
  const at::Tensor out = channels_last({s.images, s.channels, height, width}, grad);
  if (out.numel() == 0) return out;
  const at::Tensor from = grad.contiguous(at::MemoryFormat::ChannelsLast);
  if (s.rows.stride == 1 && s.columns.stride == 1) {
    // A convolution with the kernels turned around.
    Shapes turned{s.images, s.channels, transposed(s.rows), transposed(s.columns)};
    for (Axis* axis : {&turned.rows, &turned.columns}) {
      axis->padding = axis->dilation * (axis->taps - 1) - axis->padding;
    }
    const bool padded = turned.rows.padding >= 0 && turned.columns.padding >= 0;
    if (padded && better_by_torch(turned, grad.scalar_type())) {
      return by_torch(from, weight.flip({2, 3}), turned);
    }
  }
  with_type(grad.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const Convolution<T> convolution(transposed(s.rows), transposed(s.columns), s.images,
                                     s.channels, weight);
    convolution.run(from.const_data_ptr<T>(), out.data_ptr<T>());
  });
  return out;
}

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
  m.impl("depthwise_conv2d", &depthwise_conv2d_cpu);
  m.impl("depthwise_conv2d_grad_input", &depthwise_conv2d_grad_input_cpu);
  m.impl("depthwise_conv2d_grad_weight", &depthwise_conv2d_grad_weight_cpu);
}

}  // namespace ghn
