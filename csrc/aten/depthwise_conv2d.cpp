// Depthwise convolution of channels-last images on CPU, and its gradients.
//
// Floor, for B images of C channels, H x W pixels in and out, K taps: the inputs are read and the
// outputs written once, 8 B C H W bytes in float32 and 4 in bfloat16, and each of three passes
// (forward, both gradients) takes B C H W K products. One core of a Zen 4 makes one vector of 16
// products a cycle. So 5 x 5 taps over 64 images of 64 channels, 16 x 16 pixels, are 1.6 M cycles,
// as long as 8 MB take at 19 GB/s: products are the floor for 5 x 5 and larger, the memory for
// 3 x 3 and smaller, and bfloat16 saves bytes but no products.
//
// An image's channels pass in blocks of one vector. A block is spread out in float32 with the zeros
// of the padding around it, so that the inner loops know no edges; it stays in the caches until all
// of its taps are used. The taps of a row above or below the image are left out.
//
// Every output is a sum in the order of its taps, whatever is computed beside it: the same bits for
// any number of threads.
#include <ATen/Parallel.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/zeros.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include <utility>
#include <vector>

#include "depthwise_conv2d.h"
#include "depthwise_conv2d_kernels.h"
#include "images.h"
#include "../cpu/isa.h"

namespace ghn {
namespace {

Axis transposed(Axis axis) {
  std::swap(axis.in, axis.out);
  axis.transposed = true;
  return axis;
}

void check_weight(const at::Tensor& weight, const at::Tensor& images, int64_t channels) {
  check_device(weight, at::kCPU, "weight");
  check_dtype(weight, images.scalar_type(), "weight");
  TORCH_CHECK_VALUE(weight.dim() == 4 && weight.size(0) == channels && weight.size(1) == 1,
                    "weight: got shape ", weight.sizes(), ", needs (", channels,
                    ", 1, height, width)");
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
        taps.push_back({(row * width + column + left) * lanes,
                        (h * columns_axis.taps + w) * lanes});
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

  // Which rows of the list's kernel lie in the image for an output row; they are neighbours.
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

}  // namespace

at::Tensor depthwise_conv2d_cpu(const at::Tensor& x, const at::Tensor& weight,
                                at::IntArrayRef stride, at::IntArrayRef padding,
                                at::IntArrayRef dilation) {
  check_images(x, "x");
  check_weight(weight, x, x.size(1));
  const Shapes s = shapes_of(x.sizes(), weight.sizes().slice(2), stride, padding, dilation);
  const at::Tensor from = x.contiguous(at::MemoryFormat::ChannelsLast);
  if (better_by_torch(s, x.scalar_type())) return by_torch(from, weight, s);
  const at::Tensor out = channels_last({s.images, s.channels, s.rows.out, s.columns.out}, x);
  if (out.numel() == 0) return out;
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
  const at::Tensor out = channels_last({s.images, s.channels, height, width}, grad);
  if (out.numel() == 0) return out;
  with_type(grad.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const Convolution<T> convolution(transposed(s.rows), transposed(s.columns), s.images,
                                     s.channels, weight);
    convolution.run(from.const_data_ptr<T>(), out.data_ptr<T>());
  });
  return out;
}

TORCH_LIBRARY_IMPL(ghn_fast, CPU, m) {
  m.impl("depthwise_conv2d", &depthwise_conv2d_cpu);
  m.impl("depthwise_conv2d_grad_input", &depthwise_conv2d_grad_input_cpu);
}

}  // namespace ghn
