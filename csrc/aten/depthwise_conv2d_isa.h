// A depthwise convolution's inner loops on CPU. No include guard: depthwise_conv2d_kernels.cpp
// includes this file once per instruction set, with GHN_ISA (a namespace) and GHN_BYTES (of a
// vector register).

namespace ghn {
namespace GHN_ISA {

template <class T>
struct Depthwise {
  static constexpr int W = GHN_BYTES / sizeof(float);
  // Pixels whose sums are held in registers, beside a weight.
  static constexpr int kPixels = GHN_BYTES == 64 ? 16 : 8;
  typedef typename Vector<float, W>::type V;
  typedef Lanes<T, W> Memory;
  typedef Lanes<float, W> Floats;

  static void fill(const T* from, const T* end, int64_t stride, int64_t count, int64_t channels,
                   float* to, int64_t block) {
    for (; channels > 0; channels -= W, from += W, to += block) {
      // Pixels of which a whole vector may be read, other channels or not.
      int64_t whole = count;
      while (channels < W && whole > 0 && end - from < (whole - 1) * stride + W) --whole;
      for (int64_t i = 0; i < whole; ++i) {
        Floats::store(to + i * W, Memory::load(from + i * stride));
      }
      for (int64_t i = whole; i < count; ++i) {
        Floats::store(to + i * W, Memory::load_some(from + i * stride, int(channels)));
      }
    }
  }

  // STEP is the distance of the pixels in vectors, or 0 where only x_step tells. Packs of indices,
  // in a function of its own: the sums stay in registers and the addresses are constants.
  template <int STEP, int... P>
  static __attribute__((noinline)) void group(std::integer_sequence<int, P...>,
                                              const DepthwiseRows<T>& r, const float* x, T* out) {
    V sum[] = {(void(P), V{})...};
    const Tap* taps = r.taps;
    const float* weight = r.weight;
    const int64_t step = r.x_step;
    for (int64_t t = 0; t < r.num_taps; ++t) {
      const V w = Floats::load(weight + taps[t].weight);
      const float* at = x + taps[t].x;
      ((sum[P] += Floats::load(at + (STEP > 0 ? P * STEP * W : P * step)) * w), ...);
    }
    if (r.used == W) {
      (Memory::store(out + P * r.out_step, sum[P]), ...);
    } else {
      alignas(GHN_BYTES) T values[sizeof...(P)][W];
      (Memory::store(values[P], sum[P]), ...);
      for (const T* from : values) {
        Memory::copy_some(out, from, r.used);
        out += r.out_step;
      }
    }
  }

  template <int N>
  using Indices = std::make_integer_sequence<int, N>;

  // Columns [begin, end) in groups of PIXELS or fewer. The last group may begin among columns that
  // are done already: it makes the same numbers again, faster than a smaller group makes the rest.
  template <int PIXELS, int STEP>
  static void row(const DepthwiseRows<T>& r, const float* x, T* out, int64_t begin, int64_t end) {
    if constexpr (PIXELS > 1) {
      if (end - begin < PIXELS) return row<PIXELS / 2, STEP>(r, x, out, begin, end);
    }
    const auto make = [&](int64_t i) {
      group<STEP>(Indices<PIXELS>(), r, x + i * r.x_step, out + i * r.out_step);
    };
    for (; begin + PIXELS <= end; begin += PIXELS) make(begin);
    if (begin == end) return;
    if constexpr (PIXELS > 4) {
      if (2 * (end - begin) <= PIXELS) {
        return row<PIXELS / 2, STEP>(r, x, out, std::min(begin, end - 4), end);
      }
    }
    make(end - PIXELS);
  }

  template <int STEP>
  static void all_rows(const DepthwiseRows<T>& r) {
    for (int64_t i = 0; i < r.rows; ++i) {
      row<kPixels, STEP>(r, r.x + i * r.x_row, r.out + i * r.out_row, 0, r.columns);
    }
  }

  static void convolve(const DepthwiseRows<T>& r) {
    if (r.x_step == W) {
      all_rows<1>(r);
    } else if (r.x_step == 2 * W) {
      all_rows<2>(r);
    } else {
      all_rows<0>(r);
    }
  }

  template <int... P>
  static void sum_taps(std::integer_sequence<int, P...>, const DepthwiseSums<T>& s) {
    V sum[] = {Floats::load(s.sums + P * W)...};
    for (int64_t i = 0; i < s.rows; ++i) {
      const float* const at[] = {s.x + i * s.x_row + s.offsets[P]...};
      const T* grad = s.grad + i * s.grad_row;
      const int64_t step = s.x_step, grad_step = s.grad_step;
      for (int64_t j = 0, k = 0; j < s.columns; ++j, k += step, grad += grad_step) {
        const V g = Memory::load(grad);
        ((sum[P] += Floats::load(at[P] + k) * g), ...);
      }
    }
    (Floats::store(s.sums + P * W, sum[P]), ...);
  }

  template <int TAPS = DepthwiseKernels<T>::kMostTaps>
  static void gradient(const DepthwiseSums<T>& s) {
    if constexpr (TAPS > 0) {
      if (s.num_taps == TAPS) {
        sum_taps(Indices<TAPS>(), s);
      } else {
        gradient<TAPS - 1>(s);
      }
    }
  }

  static DepthwiseKernels<T> all() { return {W, &fill, &convolve, &gradient<>}; }
};

}  // namespace GHN_ISA
}  // namespace ghn
