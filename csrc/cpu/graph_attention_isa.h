// Attention of one head within one graph on CPU. No include guard: graph_attention_kernels.cpp
// includes this file once per instruction set, with GHN_ISA (a namespace) and GHN_BYTES (of a vector
// register).
//
// Rows of logits are whole: a graph has some hundred nodes. Sums over keys run lane by lane, and
// over the lanes in one order, so that a graph gets the same numbers in every batch.

namespace ghn {
namespace GHN_ISA {

struct Attention {
  static constexpr int W = GHN_BYTES / sizeof(float);
  typedef Vector<float, W>::type V;
  typedef Functions<float, W> F;

  static GHN_INLINE V load(const float* at) {
    V v;
    __builtin_memcpy(&v, at, sizeof(V));
    return v;
  }
  static GHN_INLINE void store(float* at, V v) { __builtin_memcpy(at, &v, sizeof(V)); }
  static GHN_INLINE V splat(float value) { return value - V{}; }

  static GHN_INLINE float sum(V v) {
    float lanes[W];
    store(lanes, v);
    for (int half = W / 2; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    }
    return lanes[0];
  }

  static GHN_INLINE float largest(V v) {
    float lanes[W];
    store(lanes, v);
    float most = lanes[0];
    for (int i = 1; i < W; ++i) most = lanes[i] > most ? lanes[i] : most;
    return most;
  }

  // Biases of one row of pairs; those behind the last node are -inf, so that they weigh nothing.
  template <class Code>
  static GHN_INLINE void gather(const AttentionHead& head, int64_t i, float* row) {
    const Code* codes = static_cast<const Code*>(head.codes) + i * head.nodes;
    for (int64_t j = 0; j < head.nodes; ++j) row[j] = head.bias[codes[j]];
    for (int64_t j = head.nodes; j < head.padded; ++j) {
      row[j] = -std::numeric_limits<float>::infinity();
    }
  }

  template <int ROWS>
  static GHN_INLINE void logits(const AttentionHead& head, int64_t i, float* rows) {
    for (int r = 0; r < ROWS; ++r) {
      float* row = rows + r * head.padded;
      head.wide ? gather<int16_t>(head, i + r, row) : gather<uint8_t>(head, i + r, row);
    }
    const float* query[ROWS];
    for (int r = 0; r < ROWS; ++r) query[r] = head.query + (i + r) * head.stride;
    for (int64_t j = 0; j < head.padded; j += W) {
      V total[ROWS];
      for (int r = 0; r < ROWS; ++r) total[r] = load(rows + r * head.padded + j);
      for (int64_t k = 0; k < head.width; ++k) {
        const V key = load(head.key + k * head.padded + j);
        for (int r = 0; r < ROWS; ++r) total[r] += key * query[r][k];
      }
      for (int r = 0; r < ROWS; ++r) store(rows + r * head.padded + j, total[r]);
    }
  }

  template <int ROWS>
  static void rows_of(const AttentionHead& head, int64_t i, float* out, int64_t stride_out,
                      float* logsum, int64_t heads, float* rows) {
    logits<ROWS>(head, i, rows);
    float inverse[ROWS];
    for (int r = 0; r < ROWS; ++r) {
      float* row = rows + r * head.padded;
      V most = load(row);
      for (int64_t j = W; j < head.padded; j += W) {
        const V v = load(row + j);
        most = v > most ? v : most;
      }
      const float peak = largest(most);
      V total{};
      for (int64_t j = 0; j < head.padded; j += W) {
        const V v = load(row + j);
        // exp of -inf is the smallest number that it knows; what is behind the last node is none.
        const V p = v == -std::numeric_limits<float>::infinity() ? V{} : F::exp(v - peak);
        store(row + j, p);
        total += p;
      }
      const float all = sum(total);
      inverse[r] = 1.0f / all;
      logsum[(i + r) * heads] = peak + std::log(all);
    }
    for (int64_t k = 0; k < head.width; ++k) {
      V total[ROWS] = {};
      for (int64_t j = 0; j < head.padded; j += W) {
        const V value = load(head.value + k * head.padded + j);
        for (int r = 0; r < ROWS; ++r) total[r] += load(rows + r * head.padded + j) * value;
      }
      for (int r = 0; r < ROWS; ++r) out[(i + r) * stride_out + k] = sum(total[r]) * inverse[r];
    }
  }

  static void forward(const AttentionHead& head, float* out, int64_t stride_out, float* logsum,
                      int64_t heads, float* rows) {
    int64_t i = 0;
    for (; i + 4 <= head.nodes; i += 4) rows_of<4>(head, i, out, stride_out, logsum, heads, rows);
    for (; i < head.nodes; ++i) rows_of<1>(head, i, out, stride_out, logsum, heads, rows);
  }

  template <class Code>
  static GHN_INLINE void count(const AttentionHead& head, int64_t i, const float* row,
                               float* grad_bias) {
    const Code* codes = static_cast<const Code*>(head.codes) + i * head.nodes;
    for (int64_t j = 0; j < head.nodes; ++j) grad_bias[codes[j]] += row[j];
  }

  static void backward(const AttentionHead& head, const float* grad, const float* out,
                       int64_t stride_out, const float* logsum, int64_t heads, float* grad_query,
                       float* grad_key, float* grad_value, float* grad_bias, float* rows) {
    float* weights = rows;
    float* slopes = rows + head.padded;
    for (int64_t i = 0; i < head.nodes; ++i) {
      const float *g = grad + i * stride_out, *o = out + i * stride_out;
      float mean = 0;
      for (int64_t k = 0; k < head.width; ++k) mean += g[k] * o[k];
      logits<1>(head, i, weights);
      const float shift = logsum[i * heads];
      for (int64_t j = 0; j < head.padded; j += W) {
        const V v = load(weights + j);
        const V p = v == -std::numeric_limits<float>::infinity() ? V{} : F::exp(v - shift);
        store(weights + j, p);
        V slope = splat(-mean);
        for (int64_t k = 0; k < head.width; ++k) slope += load(head.value + k * head.padded + j) * g[k];
        store(slopes + j, slope * p);
      }
      const float* query = head.query + i * head.stride;
      for (int64_t k = 0; k < head.width; ++k) {
        V total{};
        const float q = query[k], h = g[k];
        for (int64_t j = 0; j < head.padded; j += W) {
          const V slope = load(slopes + j);
          total += slope * load(head.key + k * head.padded + j);
          float* to = grad_key + k * head.padded + j;
          store(to, load(to) + slope * q);
          to = grad_value + k * head.padded + j;
          store(to, load(to) + load(weights + j) * h);
        }
        grad_query[i * head.stride + k] += sum(total);
      }
      head.wide ? count<int16_t>(head, i, slopes, grad_bias)
                : count<uint8_t>(head, i, slopes, grad_bias);
    }
  }

  static AttentionKernels all() { return {W, &forward, &backward}; }
};

}  // namespace GHN_ISA
}  // namespace ghn
