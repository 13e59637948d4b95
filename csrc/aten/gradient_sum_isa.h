// Sums of gradients on CPU. No include guard: gradient_sum_kernels.cpp includes this file once per
// instruction set, with GHN_ISA (a namespace) and GHN_BYTES (of a vector register).

namespace ghn {
namespace GHN_ISA {

template <class T>
struct GradientSum {
  static constexpr int W = GHN_BYTES / sizeof(float);
  typedef typename Vector<float, W>::type V;
  typedef Lanes<T, W> Memory;

  template <class Load>
  static GHN_INLINE V at(const GradientTerms<T>& t, int64_t row, int64_t column, Load load) {
    V sum{};
    for (int i = 0; i < t.masked.count; ++i) {
      sum += load(t.masked.data[i] + row * t.masked.stride[i] + column);
    }
    if (t.mask != nullptr) sum = load(t.mask + row * t.mask_stride + column) <= 0.0f ? V{} : sum;
    for (int i = 0; i < t.plain.count; ++i) {
      sum += load(t.plain.data[i] + row * t.plain.stride[i] + column);
    }
    return sum;
  }

  template <bool RELU>
  static void rows(const GradientTerms<T>& t, int64_t begin, int64_t end, int64_t width, T* out,
                   int64_t out_stride) {
    const auto rectified = [](V sum) { return RELU ? (sum <= 0.0f ? V{} : sum) : sum; };
    // No pointer to the function, which would be called by the conventions of another set.
    const auto all = [](const T* from) { return Memory::load(from); };
    const int rest = int(width % W);
    for (int64_t row = begin; row < end; ++row) {
      T* to = out + row * out_stride;
      int64_t column = 0;
      for (; column + W <= width; column += W) {
        Memory::store(to + column, rectified(at(t, row, column, all)));
      }
      if (rest == 0) continue;
      T values[W];
      const auto some = [rest](const T* from) { return Memory::load_some(from, rest); };
      Memory::store(values, rectified(at(t, row, column, some)));
      Memory::copy_some(to + column, values, rest);
    }
  }

  static void sum(const GradientTerms<T>& t, int64_t begin, int64_t end, int64_t width, bool relu,
                  T* out, int64_t out_stride) {
    relu ? rows<true>(t, begin, end, width, out, out_stride)
         : rows<false>(t, begin, end, width, out, out_stride);
  }
};

}  // namespace GHN_ISA
}  // namespace ghn
