// Expansion of decoded blocks into parameters on CPU.
//
// Forward: every element is written once and its block comes from the cache, so the floor is the
// memory's bandwidth for writing. Destinations that no cache can hold are written past it (streaming
// stores), which saves reading each line before it is overwritten. Threads share the elements of
// all parameters evenly, wherever a parameter begins.
//
// Backward: every gradient is read once. An element of a block is the sum over its copies in the
// order of the parameter, whatever the number of threads.

#include <cstring>
#include <type_traits>

#include "../common/checks.h"
#include "../common/expand_params_args.h"
#include "../common/parallel.h"
#include "../common/torch_call.h"
#include "streaming.h"

namespace ghn {
namespace {

// More than this is not expected to be in a cache when it is read.
constexpr int64_t kStreamBytes = int64_t(16) << 20;
// Elements that are worth a thread.
constexpr int64_t kGrain = int64_t(1) << 15;
// Elements of a block whose gradient is summed at a time: they stay in the first cache.
constexpr int64_t kPiece = 2048;

// Writes elements [begin, end) of one parameter to `to`, which is where element 0 goes.
template <class T, class Out>
class Writer {
 public:
  Writer(const ExpandRow& row, const T* block, bool stream)
      : row_(row),
        block_(block + row.source),
        scale_(row.kind == kWeight ? T(row.scale) : T(1)),
        stream_(stream),
        // Values that cost more than a product are made once per row of the block, then copied.
        direct_(std::is_same_v<T, Out> && row.kind <= kWeight) {}

  void operator()(Out* to, int64_t begin, int64_t end) {
    if (!row_.linear) {
      for (int64_t e = begin; e < end; ++e) {
        to[e] = static_cast<Out>(normalise<T>(row_.kind, block_[row_.from(e)], scale_));
      }
      return;
    }
    int64_t row = begin / row_.row_length % row_.rows, t = begin % row_.row_length;
    int64_t column = t % row_.period;
    while (begin < end) {
      const int64_t n =
          std::min({row_.period - column, row_.row_length - t, end - begin});
      piece(to + begin, row, column, n);
      begin += n, t += n, column += n;
      if (column == row_.period) column = 0;
      if (t == row_.row_length) {
        t = column = 0;
        if (++row == row_.rows) row = 0;
      }
    }
  }

 private:
  void piece(Out* to, int64_t row, int64_t column, int64_t n) {
    const T* from = block_ + row * row_.stride + column;
    if constexpr (std::is_same_v<T, Out>) {
      if (direct_) {
        stream_ ? stream_scaled(to, from, n, scale_) : copy_scaled(to, from, n, scale_);
        return;
      }
    }
    if (n < row_.period && row != made_) {
      for (int64_t k = 0; k < n; ++k) {
        to[k] = static_cast<Out>(normalise<T>(row_.kind, from[k], scale_));
      }
      return;
    }
    if (row != made_) {
      values_.resize(size_t(row_.period));
      for (int64_t k = 0; k < row_.period; ++k) {
        values_[size_t(k)] =
            static_cast<Out>(normalise<T>(row_.kind, (from - column)[k], scale_));
      }
      made_ = row;
    }
    std::memcpy(to, values_.data() + column, size_t(n) * sizeof(Out));
  }

  const ExpandRow& row_;
  const T* block_;
  T scale_;
  bool stream_, direct_;
  std::vector<Out> values_;
  int64_t made_ = -1;
};

template <class T>
std::vector<const T*> pointers(const std::vector<Tensor>& tensors) {
  std::vector<const T*> result;
  for (const Tensor& tensor : tensors) result.push_back(tensor.const_data_ptr<T>());
  return result;
}

std::vector<Tensor> contiguous(TensorList tensors) {
  std::vector<Tensor> result;
  for (const Tensor& tensor : tensors) result.push_back(tensor.contiguous());
  return result;
}

// Calls f with a value of the type that the tensors have.
template <class F>
void with_type(ScalarType type, const char* what, F f) {
  switch (type) {
    case kFloat:
      return f(float{});
    case kDouble:
      return f(double{});
    case kHalf:
      return f(Half{});
    case kBFloat16:
      return f(BFloat16{});
    default:
      GHN_CHECK(false, what, ": got ", type, ", needs float32, float64, float16 or bfloat16");
  }
}

int64_t element_size(ScalarType type) {
  int64_t size = 0;
  with_type(type, "out", [&](auto value) { size = sizeof(value); });
  return size;
}

template <class F>
void with_block_type(ScalarType type, F f) {
  GHN_CHECK(type == kFloat || type == kDouble, "blocks: got ", type,
            ", needs float32 or float64 on CPU");
  type == kFloat ? f(float{}) : f(double{});
}

template <class T>
void expand_rows(const std::vector<ExpandRow>& rows, const std::vector<const T*>& blocks,
                 const std::vector<void*>& to, const std::vector<ScalarType>& types,
                 bool may_stream) {
  std::vector<int64_t> first = {0};
  int64_t bytes = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    first.push_back(first.back() + rows[i].size);
    bytes += rows[i].size * element_size(types[i]);
  }
  const bool stream = may_stream && bytes > kStreamBytes;
  parallel_for(0, first.back(), kGrain, [&](int64_t begin, int64_t end) {
    // The last row that begins at or before `begin` is the one with the element: rows without
    // elements begin where the next one does.
    size_t i = size_t(std::upper_bound(first.begin(), first.end(), begin) - first.begin()) - 1;
    for (; i < rows.size() && first[i] < end; ++i) {
      const int64_t from = std::max(begin, first[i]) - first[i];
      const int64_t until = std::min(end, first[i + 1]) - first[i];
      if (from >= until) continue;
      with_type(types[i], "out", [&](auto type) {
        using Out = decltype(type);
        Writer<T, Out> write(rows[i], blocks[size_t(rows[i].block)], stream);
        write(static_cast<Out*>(to[i]), from, until);
      });
    }
    if (stream) finish_streaming();
  });
}

template <class T>
struct Piece {
  const Chain* chain;
  int64_t begin, end;  // elements of the chain's block tensor
};

// sum += the `count` (at most 4) arrays `from`; several at a time spare traffic with `sum`.
template <class T>
void add_arrays(T* __restrict__ sum, const T* const* from, int count, int64_t n) {
  if (count == 4) {
    const T *a = from[0], *b = from[1], *c = from[2], *d = from[3];
    for (int64_t k = 0; k < n; ++k) sum[k] += (a[k] + b[k]) + (c[k] + d[k]);
    return;
  }
  for (int i = 0; i < count; ++i) {
    for (int64_t k = 0; k < n; ++k) sum[k] += from[i][k];
  }
}

// Adds up the gradient of elements [begin, end) of a block row, counted from its source.
template <class T>
void sum_linear(const ExpandRow& row, const T* grad, const T* block, int64_t begin, int64_t end,
                T* to) {
  T sum[kPiece];
  const T scale = T(row.scale);
  while (begin < end) {
    const int64_t b = begin / row.stride, t = begin % row.stride;
    if (b >= row.rows) return;
    if (t >= row.period) {
      begin = (b + 1) * row.stride;
      continue;
    }
    const int64_t n = std::min({row.period - t, end - begin, kPiece});
    std::fill_n(sum, n, T(0));
    const T* from[4];
    int count = 0;
    for (int64_t o = b; o < row.channels; o += row.rows) {
      for (int64_t column = t; column < row.row_length; column += row.period) {
        const T* copy = grad + o * row.row_length + column;
        if (row.row_length - column < n) {  // cut off
          add_arrays(sum, &copy, 1, row.row_length - column);
          continue;
        }
        from[count++] = copy;
        if (count == 4) add_arrays(sum, from, 4, n), count = 0;
      }
    }
    add_arrays(sum, from, count, n);
    for (int64_t k = 0; k < n; ++k) {
      to[begin + k] += sum[k] * normalise_slope<T>(row.kind, block[begin + k], scale);
    }
    begin += n;
  }
}

template <class T>
void sum_copies(const ExpandRow& row, const T* grad, const T* block, int64_t begin, int64_t end,
                T* to) {
  if (row.linear) return sum_linear(row, grad, block, begin, end, to);
  for (int64_t s = begin; s < end; ++s) {
    const T sum = row.gather<int64_t>(grad, s, 0, 1);
    to[s] += sum * normalise_slope<T>(row.kind, block[s], T(row.scale));
  }
}

// Zeros for the elements that no row reads.
template <class T>
void clear_gaps(const Chains& found, std::vector<Tensor>& grads) {
  size_t next = 0;
  for (size_t b = 0; b < grads.size(); ++b) {
    T* to = grads[b].template data_ptr<T>();
    int64_t end = 0;
    for (; next < found.chains.size() && found.chains[next].block == int32_t(b); ++next) {
      std::fill(to + end, to + found.chains[next].begin, T(0));
      end = found.chains[next].end;
    }
    std::fill(to + end, to + grads[b].numel(), T(0));
  }
}

template <class T>
void backward_rows(const std::vector<ExpandRow>& rows, const T* grad,
                   const std::vector<const T*>& blocks, std::vector<Tensor>& grads) {
  const Chains found = find_chains(rows);
  clear_gaps<T>(found, grads);
  std::vector<Piece<T>> pieces;
  std::vector<int64_t> work = {0};  // gradients read up to each piece
  for (const Chain& chain : found.chains) {
    for (int64_t begin = chain.begin; begin < chain.end; begin += kPiece) {
      const int64_t end = std::min(begin + kPiece, chain.end);
      int64_t reads = 0;
      for (int64_t i = chain.first; i < chain.last; ++i) {
        const ExpandRow& row = rows[size_t(found.order[size_t(i)])];
        reads += row.size * (end - begin) / row.block_size;
      }
      pieces.push_back({&chain, begin, end});
      work.push_back(work.back() + reads + (end - begin));
    }
  }
  parallel_for(0, work.back(), kGrain, [&](int64_t begin, int64_t end) {
    // A piece belongs to the thread in whose share it begins.
    size_t p = size_t(std::lower_bound(work.begin(), work.end(), begin) - work.begin());
    for (; p < pieces.size() && work[p] < end; ++p) {
      const Chain& chain = *pieces[p].chain;
      T* to = grads[size_t(chain.block)].template data_ptr<T>();
      std::fill(to + pieces[p].begin, to + pieces[p].end, T(0));
      for (int64_t i = chain.first; i < chain.last; ++i) {
        const ExpandRow& row = rows[size_t(found.order[size_t(i)])];
        const int64_t s0 = std::max(pieces[p].begin - row.source, int64_t(0));
        const int64_t s1 = std::min(pieces[p].end - row.source, row.block_size);
        if (s0 < s1) {
          sum_copies<T>(row, grad + row.offset, blocks[size_t(row.block)] + row.source, s0, s1,
                        to + row.source);
        }
      }
    }
  });
}

}  // namespace

Tensor expand_params_cpu(TensorList blocks, const Tensor& table, const std::optional<Tensor>&,
                         int64_t numel) {
  GHN_CHECK(numel >= 0, "numel: got ", numel, ", needs at least 0");
  const std::vector<ExpandRow> rows = read_table(table, blocks, numel);
  const std::vector<Tensor> from = contiguous(blocks);
  Tensor out = empty({numel}, blocks[0].options());
  with_block_type(out.scalar_type(), [&](auto type) {
    using T = decltype(type);
    T* data = out.data_ptr<T>();
    std::vector<void*> to;
    for (const ExpandRow& row : rows) {
      to.push_back(data + row.offset);
      std::fill_n(data + row.offset + row.size, row.padded - row.size, T(0));
    }
    const std::vector<ScalarType> types(rows.size(), out.scalar_type());
    // Fresh memory comes cleared page by page: it is in the caches when it is written.
    expand_rows<T>(rows, pointers<T>(from), to, types, false);
  });
  return out;
}

void expand_params_into_cpu(TensorList blocks, const Tensor& table, TensorList out) {
  const std::vector<ExpandRow> rows = read_table(table, blocks, -1);
  GHN_CHECK(out.size() == rows.size(), "out: got ", out.size(), " tensors, needs ", rows.size(),
            ", one for each row of the plan");
  std::vector<Tensor> scratch(out.size());
  std::vector<void*> to;
  std::vector<ScalarType> types;
  for (size_t i = 0; i < rows.size(); ++i) {
    check_device(out[i], kCPU, "out");
    GHN_CHECK(out[i].numel() == rows[i].size, "out[", i, "]: got a tensor of shape ",
              out[i].sizes(), ", needs ", rows[i].size, " elements");
    with_type(out[i].scalar_type(), "out", [](auto) {});
    // Elements in another order than the shape's go through a tensor that is in order.
    if (!out[i].is_contiguous()) scratch[i] = empty_like(out[i]);
    const Tensor& target = scratch[i].defined() ? scratch[i] : out[i];
    to.push_back(target.data_ptr());
    types.push_back(target.scalar_type());
  }
  const std::vector<Tensor> from = contiguous(blocks);
  with_block_type(blocks[0].scalar_type(), [&](auto type) {
    using T = decltype(type);
    expand_rows<T>(rows, pointers<T>(from), to, types, true);
  });
  for (size_t i = 0; i < rows.size(); ++i) {
    if (scratch[i].defined()) out[i].copy_(scratch[i]);
  }
}

std::vector<Tensor> expand_params_backward_cpu(const Tensor& grad, TensorList blocks,
                                               const Tensor& table, const std::optional<Tensor>&) {
  GHN_CHECK(grad.dim() == 1, "grad: got shape ", grad.sizes(), ", needs one dimension");
  const std::vector<ExpandRow> rows = read_table(table, blocks, grad.numel());
  check_dtype(grad, blocks[0].scalar_type(), "grad");
  check_device(grad, blocks[0].device(), "grad");
  const Tensor values = grad.contiguous();
  const std::vector<Tensor> from = contiguous(blocks);
  std::vector<Tensor> grads;
  for (const Tensor& block : from) grads.push_back(empty_like(block));
  with_block_type(grad.scalar_type(), [&](auto type) {
    using T = decltype(type);
    backward_rows<T>(rows, values.const_data_ptr<T>(), pointers<T>(from), grads);
  });
  return grads;
}

STABLE_TORCH_LIBRARY_IMPL(ghn_fast, CPU, m) {
  m.impl("expand_params", boxed<&expand_params_cpu>);
  m.impl("expand_params_into", boxed<&expand_params_into_cpu>);
  m.impl("expand_params_backward", boxed<&expand_params_backward_cpu>);
}

}  // namespace ghn
