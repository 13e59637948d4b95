// The decoder's product on CPU. No include guard: decode_blocks_kernels.cpp includes this file once
// per instruction set, with GHN_ISA (a namespace) and GHN_BYTES (of a vector register).

namespace ghn {
namespace GHN_ISA {

struct Product {
  static constexpr int W = GHN_BYTES / sizeof(float);
  static constexpr int kColumns = W;
  // Two vectors of sums for each row, as many as leave registers for the operands.
  static constexpr int kRows = GHN_BYTES == 64 ? 8 : 4;
  typedef Vector<float, W>::type V;

  static GHN_INLINE V load(const float* at) {
    V v;
    __builtin_memcpy(&v, at, sizeof(V));
    return v;
  }
  static GHN_INLINE void store(float* at, V v) { __builtin_memcpy(at, &v, sizeof(V)); }

  template <int ROWS, int VECTORS>
  static void tile(const float* const* weight, const float* bias, int64_t inputs,
                   const float* const* panel, bool relu, float* to) {
    const float *row[ROWS], *at[VECTORS];
    for (int v = 0; v < VECTORS; ++v) at[v] = panel[v];
    V sum[ROWS][VECTORS];
    for (int r = 0; r < ROWS; ++r) {
      row[r] = weight[r];
      for (int v = 0; v < VECTORS; ++v) sum[r][v] = bias[r] - V{};
    }
    for (int64_t k = 0; k < inputs; ++k) {
      V x[VECTORS];
      for (int v = 0; v < VECTORS; ++v) x[v] = load(at[v] + k * W);
      for (int r = 0; r < ROWS; ++r) {
        const float value = row[r][k];
        for (int v = 0; v < VECTORS; ++v) sum[r][v] += x[v] * value;
      }
    }
    for (int r = 0; r < ROWS; ++r) {
      for (int v = 0; v < VECTORS; ++v) {
        V y = sum[r][v];
        if (relu) y = y < 0.0f ? V{} : y;  // NaN stays
        store(to + (2 * r + v) * W, y);
      }
    }
  }

  template <int VECTORS>
  static void rows(const float* const* weight, const float* bias, int count, int64_t inputs,
                   const float* const* panel, bool relu, float* to) {
    if (count == kRows) return tile<kRows, VECTORS>(weight, bias, inputs, panel, relu, to);
    int r = 0;
    if constexpr (kRows > 4) {
      if (r + 4 <= count) {
        tile<4, VECTORS>(weight, bias, inputs, panel, relu, to);
        r += 4;
      }
    }
    if (r + 2 <= count) {
      tile<2, VECTORS>(weight + r, bias + r, inputs, panel, relu, to + 2 * r * W);
      r += 2;
    }
    if (r < count) tile<1, VECTORS>(weight + r, bias + r, inputs, panel, relu, to + 2 * r * W);
  }

  static void product(const float* const* weight, const float* bias, int count, int64_t inputs,
                      const float* first, const float* second, bool relu, float* to) {
    const float* panel[2] = {first, second};
    second != nullptr ? rows<2>(weight, bias, count, inputs, panel, relu, to)
                      : rows<1>(weight, bias, count, inputs, panel, relu, to);
  }
};

}  // namespace GHN_ISA
}  // namespace ghn
