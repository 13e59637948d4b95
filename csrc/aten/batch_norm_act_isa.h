// The inner loops of a batch normalisation on CPU. No include guard: batch_norm_act_kernels.cpp
// includes this file once per instruction set, with GHN_ISA (a namespace) and GHN_BYTES (of a
// vector register).

namespace ghn {
namespace GHN_ISA {

template <class T>
struct BatchNorm {
  static constexpr int W = GHN_BYTES / sizeof(float);
  typedef typename Vector<float, W>::type V;
  typedef Lanes<T, W> Memory;
  typedef Lanes<float, W> Floats;

  // Calls f(column, vectors), vectors a constant, for columns that cover a row; those of a call are
  // next to each other, up to four vectors, so that whole cache lines are read in order.
  template <class F>
  static GHN_INLINE void over_columns(int64_t width, F f) {
    int64_t c = 0;
    for (; c + 4 * W <= width; c += 4 * W) f(c, std::integral_constant<int, 4>());
    if (c + 2 * W <= width) {
      f(c, std::integral_constant<int, 2>());
      c += 2 * W;
    }
    if (c + W <= width) {
      f(c, std::integral_constant<int, 1>());
      c += W;
    }
    if (c < width) f(width - W, std::integral_constant<int, 1>());
  }

  template <int N>
  static GHN_INLINE void load_columns(const float* from, V (&to)[N]) {
    for (int v = 0; v < N; ++v) to[v] = Floats::load(from + v * W);
  }

  // The mean and the squares about it follow from sums of distances from a point nearby. That point
  // is the mean of an eighth of the rows: its distance from the mean of all is at most sqrt(7)
  // standard deviations, whatever the numbers, and the squares lose at most three bits.
  template <int N>
  static void column_statistics(const T* x, int64_t rows, int64_t width, double* mean,
                                double* squares) {
    V point[N], sum[N], square[N];
    for (int v = 0; v < N; ++v) point[v] = sum[v] = square[v] = V{};
    const int64_t few = (rows + 7) / 8;
    for (int64_t r = 0; r < few; ++r) {
      for (int v = 0; v < N; ++v) point[v] += Memory::load(x + r * width + v * W);
    }
    for (int v = 0; v < N; ++v) point[v] *= 1.0f / float(few);
    for (int64_t r = 0; r < rows; ++r) {
      for (int v = 0; v < N; ++v) {
        const V distance = Memory::load(x + r * width + v * W) - point[v];
        sum[v] += distance;
        square[v] += distance * distance;
      }
    }
    for (int v = 0; v < N; ++v) {
      for (int i = 0; i < W; ++i) {
        const double s = double(sum[v][i]) / double(rows);
        mean[v * W + i] = double(point[v][i]) + s;
        squares[v * W + i] = double(square[v][i]) - double(sum[v][i]) * s;
      }
    }
  }

  static void statistics(const T* x, int64_t rows, int64_t width, double* mean, double* squares) {
    over_columns(width, [&](int64_t c, auto n) {
      column_statistics<n>(x + c, rows, width, mean + c, squares + c);
    });
  }

  template <int N, bool RELU>
  static void normalise_columns(const T* x, int64_t rows, int64_t width,
                                const BatchNormColumns& columns, int64_t c, T* out) {
    V mean[N], scale[N], shift[N];
    load_columns(columns.mean + c, mean);
    load_columns(columns.scale + c, scale);
    load_columns(columns.shift + c, shift);
    for (int64_t r = 0; r < rows; ++r) {
      for (int v = 0; v < N; ++v) {
        const int64_t at = r * width + c + v * W;
        V y = (Memory::load(x + at) - mean[v]) * scale[v] + shift[v];
        if (RELU) y = y <= 0.0f ? V{} : y;  // NaN stays
        Memory::store(out + at, y);
      }
    }
  }

  static void normalise(const T* x, int64_t rows, int64_t width, const BatchNormColumns& columns,
                        bool relu, T* out) {
    over_columns(width, [&](int64_t c, auto n) {
      relu ? normalise_columns<n, true>(x, rows, width, columns, c, out)
           : normalise_columns<n, false>(x, rows, width, columns, c, out);
    });
  }

  template <int N, bool RELU>
  static void column_sums(const T* grad, const T* x, int64_t rows, int64_t width,
                          const BatchNormColumns& columns, int64_t c, float* sum, float* product) {
    V mean[N], scale[N], shift[N], s[N], p[N];
    load_columns(columns.mean + c, mean);
    load_columns(columns.scale + c, scale);
    load_columns(columns.shift + c, shift);
    for (int v = 0; v < N; ++v) s[v] = p[v] = V{};
    for (int64_t r = 0; r < rows; ++r) {
      for (int v = 0; v < N; ++v) {
        const int64_t at = r * width + c + v * W;
        const V distance = Memory::load(x + at) - mean[v];
        V g = Memory::load(grad + at);
        if (RELU) g = distance * scale[v] + shift[v] <= 0.0f ? V{} : g;
        s[v] += g;
        p[v] += g * distance;
      }
    }
    for (int v = 0; v < N; ++v) {
      Floats::store(sum + c + v * W, s[v]);
      Floats::store(product + c + v * W, p[v]);
    }
  }

  static void sums(const T* grad, const T* x, int64_t rows, int64_t width,
                   const BatchNormColumns& columns, bool relu, float* sum, float* product) {
    over_columns(width, [&](int64_t c, auto n) {
      relu ? column_sums<n, true>(grad, x, rows, width, columns, c, sum, product)
           : column_sums<n, false>(grad, x, rows, width, columns, c, sum, product);
    });
  }

  template <int N, bool RELU>
  static void column_gradient(const T* grad, const T* x, int64_t rows, int64_t width,
                              const BatchNormColumns& columns, const float* offset,
                              const float* slope, int64_t c, T* out) {
    V mean[N], scale[N], shift[N], offsets[N], slopes[N];
    load_columns(columns.mean + c, mean);
    load_columns(columns.scale + c, scale);
    load_columns(columns.shift + c, shift);
    load_columns(offset + c, offsets);
    load_columns(slope + c, slopes);
    for (int64_t r = 0; r < rows; ++r) {
      for (int v = 0; v < N; ++v) {
        const int64_t at = r * width + c + v * W;
        const V distance = Memory::load(x + at) - mean[v];
        V g = Memory::load(grad + at);
        if (RELU) g = distance * scale[v] + shift[v] <= 0.0f ? V{} : g;
        Memory::store(out + at, g * scale[v] - offsets[v] - distance * slopes[v]);
      }
    }
  }

  static void gradient(const T* grad, const T* x, int64_t rows, int64_t width,
                       const BatchNormColumns& columns, const float* offset, const float* slope,
                       bool relu, T* out) {
    over_columns(width, [&](int64_t c, auto n) {
      relu ? column_gradient<n, true>(grad, x, rows, width, columns, offset, slope, c, out)
           : column_gradient<n, false>(grad, x, rows, width, columns, offset, slope, c, out);
    });
  }

  static BatchNormKernels<T> all() { return {W, &statistics, &normalise, &sums, &gradient}; }
};

}  // namespace GHN_ISA
}  // namespace ghn
