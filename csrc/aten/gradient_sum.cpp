// Autograd adds up the gradients of a value two by two, and masks them for a ReLU in another pass.
//
// Floor: each term, and the mask, is read once, and the sum written once. Two by two, k terms take
// 3 (k - 1) passes over memory, and a mask 3 more; here it is k + 2.
#include "gradient_sum.h"

#include <ATen/Functions.h>
#include <ATen/Parallel.h>

#include <algorithm>

#include "gradient_sum_kernels.h"
#include "images.h"

namespace ghn {
namespace {

// Elements that are worth a thread.
constexpr int64_t kGrain = int64_t(1) << 15;

// Images as rows of channels, one per pixel, at a distance; 0 where they are not stored like that.
int64_t row_stride(const at::Tensor& x) {
  if (x.dim() != 4 || (x.size(1) > 1 && x.stride(1) != 1)) return 0;
  int64_t stride = 0, pixels = 1;
  for (const int64_t axis : {3, 2, 0}) {
    if (x.size(axis) == 1) continue;
    if (stride == 0) stride = x.stride(axis);
    if (x.stride(axis) != stride * pixels) return 0;
    pixels *= x.size(axis);
  }
  return stride == 0 ? x.size(1) : std::max<int64_t>(stride, 0);
}

bool is_rows(const at::Tensor& x, const at::Tensor& like) {
  return row_stride(x) > 0 && x.sizes() == like.sizes() && x.scalar_type() == like.scalar_type();
}

bool are_rows(const std::vector<at::Tensor>& tensors, const at::Tensor& like) {
  return std::all_of(tensors.begin(), tensors.end(),
                     [&](const at::Tensor& x) { return is_rows(x, like); });
}

template <class T>
TermList<T> list_of(const at::Tensor* tensors, size_t count) {
  TermList<T> list;
  list.count = int(count);
  for (size_t i = 0; i < count; ++i) {
    list.data[i] = tensors[i].const_data_ptr<T>();
    list.stride[i] = row_stride(tensors[i]);
  }
  return list;
}

at::Tensor sum_of_rows(const at::Tensor* plain, size_t num_plain, const at::Tensor* masked,
                       size_t num_masked, const at::Tensor& mask, bool relu = false) {
  const at::Tensor& like = num_plain > 0 ? plain[0] : masked[0];
  const at::Tensor out = channels_last(like.sizes(), like);
  with_type(like.scalar_type(), [&](auto type) {
    using T = decltype(type);
    GradientTerms<T> terms;
    terms.plain = list_of<T>(plain, num_plain);
    terms.masked = list_of<T>(masked, num_masked);
    if (mask.defined()) {
      terms.mask = mask.const_data_ptr<T>();
      terms.mask_stride = row_stride(mask);
    }
    int64_t width = out.size(1), rows = out.numel() / width;
    const auto dense = [&](const TermList<T>& list) {
      return std::all_of(list.stride, list.stride + list.count,
                         [&](int64_t stride) { return stride == width; });
    };
    const bool whole = dense(terms.plain) && dense(terms.masked) &&
                       (terms.mask == nullptr || terms.mask_stride == width);
    // Without gaps, vectors need not end with a pixel.
    constexpr int64_t kLine = 256;
    if (whole && out.numel() % kLine == 0) {
      rows = out.numel() / kLine;
      width = kLine;
      for (TermList<T>* list : {&terms.plain, &terms.masked}) {
        std::fill_n(list->stride, list->count, kLine);
      }
      terms.mask_stride = kLine;
    }
    const GradientSumKernel<T> kernel = gradient_sum_kernel<T>();
    at::parallel_for(0, rows, std::max<int64_t>(1, kGrain / width),
                     [&](int64_t begin, int64_t end) {
                       kernel(terms, begin, end, width, relu, out.data_ptr<T>(), width);
                     });
  });
  return out;
}

// More terms than a kernel takes: the first ones are summed, and the rest with that.
void shorten(std::vector<at::Tensor>* terms) {
  while (terms->size() > size_t(kMostTerms)) {
    const at::Tensor sum = sum_of_rows(terms->data(), kMostTerms, nullptr, 0, at::Tensor());
    terms->erase(terms->begin(), terms->begin() + kMostTerms);
    terms->insert(terms->begin(), sum);
  }
}

at::Tensor sum_by_torch(const std::vector<at::Tensor>& terms) {
  at::Tensor sum = terms[0];
  for (size_t i = 1; i < terms.size(); ++i) sum = at::add(sum, terms[i]);
  return sum;
}

}  // namespace

at::Tensor add_relu(const at::Tensor& a, const at::Tensor& b) {
  if (!has_image_type(a) || a.numel() == 0 || !is_rows(a, a) || !is_rows(b, a)) return {};
  const at::Tensor both[] = {a, b};
  return sum_of_rows(both, 2, nullptr, 0, at::Tensor(), true);
}

at::Tensor cat_relu(const std::vector<at::Tensor>& parts) {
  const at::Tensor& like = parts[0];
  int64_t channels = 0;
  for (const at::Tensor& part : parts) {
    if (!has_image_type(part) || part.scalar_type() != like.scalar_type() || part.numel() == 0 ||
        row_stride(part) == 0 || part.size(0) != like.size(0) ||
        part.sizes().slice(2) != like.sizes().slice(2)) {
      return {};
    }
    channels += part.size(1);
  }
  const at::Tensor out =
      channels_last({like.size(0), channels, like.size(2), like.size(3)}, like);
  with_type(like.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const GradientSumKernel<T> kernel = gradient_sum_kernel<T>();
    const int64_t rows = out.numel() / channels;
    at::parallel_for(0, rows, std::max<int64_t>(1, kGrain / channels),
                     [&](int64_t begin, int64_t end) {
                       T* to = out.data_ptr<T>();
                       for (const at::Tensor& part : parts) {
                         GradientTerms<T> terms;
                         terms.plain = list_of<T>(&part, 1);
                         kernel(terms, begin, end, part.size(1), true, to, channels);
                         to += part.size(1);
                       }
                     });
  });
  return out;
}

void GradientSum::add_through_relu(GradientSum gradients, const at::Tensor& relu) {
  if (gradients.empty()) return;
  if (!masked_.empty() || !gradients.masked_.empty()) {
    // One mask at a time.
    add(at::threshold_backward(gradients.take(), relu, 0));
    return;
  }
  masked_ = std::move(gradients.plain_);
  mask_ = relu;
}

at::Tensor GradientSum::take() {
  std::vector<at::Tensor> plain = std::move(plain_), masked = std::move(masked_);
  const at::Tensor mask = std::move(mask_);
  plain_.clear(), masked_.clear(), mask_.reset();
  if (plain.empty() && masked.empty()) return {};
  // Some gradients of torch's come in the other layout.
  for (std::vector<at::Tensor>* terms : {&plain, &masked}) {
    for (at::Tensor& term : *terms) {
      if (term.dim() == 4 && row_stride(term) == 0) {
        term = term.contiguous(at::MemoryFormat::ChannelsLast);
      }
    }
  }
  const at::Tensor like = plain.empty() ? masked[0] : plain[0];
  if (plain.size() == 1 && masked.empty()) {
    return like.dim() == 4 ? like.contiguous(at::MemoryFormat::ChannelsLast) : like;
  }
  const bool rows = has_image_type(like) && like.numel() > 0 && are_rows(plain, like) &&
                    are_rows(masked, like) && (!mask.defined() || is_rows(mask, like));
  if (!rows) {
    if (!masked.empty()) plain.push_back(at::threshold_backward(sum_by_torch(masked), mask, 0));
    return sum_by_torch(plain);
  }
  shorten(&plain);
  shorten(&masked);
  return sum_of_rows(plain.data(), plain.size(), masked.data(), masked.size(), mask);
}

}  // namespace ghn
