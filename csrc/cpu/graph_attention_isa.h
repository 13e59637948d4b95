// Attention of one head within one graph on CPU. No include guard: graph_attention_kernels.cpp
// includes this file once per instruction set, with GHN_ISA (a namespace) and GHN_BYTES (of a vector
// register).
//
// Rows of logits are whole: a graph has some hundred nodes. Forward, lanes are queries, so that
// nothing is summed over lanes; backward, lanes are keys. All sums have one order, so that a graph
// gets the same numbers in every batch.

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
  static GHN_INLINE V larger(V a, V b) { return a > b ? a : b; }

  static GHN_INLINE float sum(V v) {
    float lanes[W];
    store(lanes, v);
    for (int half = W / 2; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    }
    return lanes[0];
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

  // Elements of queries, or of outputs, that are kept in registers.
  static constexpr int kMost = W == 16 ? 16 : 8;

  // Biases of the queries from i on, with each key.
  template <class Code>
  static void biases(const AttentionQueries& head, int64_t i, float* logits) {
    constexpr int kSide = sizeof(Code) == 1 ? 4 : 1;  // codes side by side
    const Code* codes = static_cast<const Code*>(head.codes) + i * kSide;
    for (int64_t j = 0; j < head.nodes; ++j) {
      const Code* row = codes + j / kSide * head.padded * kSide + j % kSide;
      for (int lane = 0; lane < W; ++lane) logits[j * W + lane] = head.bias[row[lane * kSide]];
    }
  }

#if defined(__GNUC__) && !defined(__clang__)
  static constexpr bool kShuffles = W == 16;
#else
  static constexpr bool kShuffles = false;
#endif

  // The same from a table in registers, faster than number by number.
  static void shuffled_biases(const AttentionQueries& head, int64_t i, float* logits) {
    if constexpr (kShuffles) {
      typedef typename Vector<int32_t, W>::type I;
      V table[AttentionQueries::kTable / W];
      for (int t = 0; t < AttentionQueries::kTable / W; ++t) table[t] = load(head.bias + t * W);
      const int32_t* codes = static_cast<const int32_t*>(head.codes) + i;
      for (int64_t j = 0; j < head.nodes; j += 4, codes += head.padded) {
        I code;
        __builtin_memcpy(&code, codes, sizeof(I));
        for (int n = 0; n < 4; ++n, code >>= 8) {
          // Each of two tables by the lowest five bits.
          const V a = __builtin_shuffle(table[0], table[1], code);
          const V b = __builtin_shuffle(table[2], table[3], code);
          const V c = __builtin_shuffle(table[4], table[5], code);
          const V d = __builtin_shuffle(table[6], table[7], code);
          const V low = (code & 32) != 0 ? b : a, high = (code & 32) != 0 ? d : c;
          store(logits + (j + n) * W, (code & 64) != 0 ? high : low);
        }
      }
    }
  }

  template <int K>
  static void add_products(const AttentionQueries& head, int64_t i, int64_t k, float* logits) {
    V query[K];
    for (int n = 0; n < K; ++n) query[n] = load(head.query + (k + n) * head.padded + i);
    // Sums beside each other: those of all keys of a block take too many registers elsewhere.
    constexpr int kSums = W == 16 ? 8 : 4;
    constexpr int kKeys = AttentionQueries::kKeys;
    const float* key = head.key + k * kKeys;
    for (int64_t j = 0; j < head.nodes; j += kKeys, key += head.width * kKeys) {
      for (int s = 0; s < kKeys; s += kSums) {
        float* to = logits + (j + s) * W;
        V total[kSums];
        for (int u = 0; u < kSums; ++u) total[u] = load(to + u * W);
        for (int n = 0; n < K; ++n) {
          for (int u = 0; u < kSums; ++u) total[u] += query[n] * key[n * kKeys + s + u];
        }
        for (int u = 0; u < kSums; ++u) store(to + u * W, total[u]);
      }
    }
  }

  template <int K>
  static void mix(const AttentionQueries& head, int64_t k, const float* weights, V inverse,
                  int64_t count, float* out, int64_t stride_out) {
    V total[K] = {};
    const float* value = head.value + k;
    for (int64_t j = 0; j < head.nodes; ++j) {
      const V weight = load(weights + j * W);
      for (int n = 0; n < K; ++n) total[n] += weight * value[j * head.width + n];
    }
    float rows[K][W];
    for (int n = 0; n < K; ++n) store(rows[n], total[n] * inverse);
    for (int64_t lane = 0; lane < count; ++lane) {
      for (int n = 0; n < K; ++n) out[lane * stride_out + k + n] = rows[n][lane];
    }
  }

  // Calls work.template operator()<K>(k) for parts [k, k + K) of a head's width.
  template <int K, class Work>
  static GHN_INLINE int64_t parts(int64_t width, int64_t k, Work& work) {
    for (; k + K <= width; k += K) work.template operator()<K>(k);
    if constexpr (K > 1) k = parts<K / 2>(width, k, work);
    return k;
  }

  static void block(const AttentionQueries& head, int64_t i, float* out, int64_t stride_out,
                    float* logsum, int64_t heads, float* logits) {
    if (head.wide) {
      biases<int16_t>(head, i, logits);
    } else if (kShuffles && head.rows <= AttentionQueries::kTable) {
      shuffled_biases(head, i, logits);
    } else {
      biases<uint8_t>(head, i, logits);
    }
    auto product = [&]<int K>(int64_t k) { add_products<K>(head, i, k, logits); };
    parts<kMost>(head.width, 0, product);
    const float nothing = -std::numeric_limits<float>::infinity();
    V most[4] = {splat(nothing), splat(nothing), splat(nothing), splat(nothing)};
    int64_t whole = 0;
    for (; whole + 4 <= head.nodes; whole += 4) {
      for (int n = 0; n < 4; ++n) most[n] = larger(load(logits + (whole + n) * W), most[n]);
    }
    for (; whole < head.nodes; ++whole) most[0] = larger(load(logits + whole * W), most[0]);
    const V peaks = larger(larger(most[0], most[1]), larger(most[2], most[3]));
    V total{};
    for (int64_t j = 0; j < head.nodes; ++j) {
      const V v = load(logits + j * W);
      // exp of -inf is the smallest number that it knows.
      const V p = v == nothing ? V{} : F::exp(v - peaks);
      store(logits + j * W, p);
      total += p;
    }
    const V inverse = 1.0f / total;
    const int64_t count = std::min<int64_t>(W, head.nodes - i);
    float peak[W], all[W];
    store(peak, peaks);
    store(all, total);
    for (int64_t n = 0; n < count; ++n) logsum[(i + n) * heads] = peak[n] + std::log(all[n]);
    float* rows = out + i * stride_out;
    auto mixed = [&]<int K>(int64_t k) {
      mix<K>(head, k, logits, inverse, count, rows, stride_out);
    };
    parts<kMost>(head.width, 0, mixed);
  }

  static void forward(const AttentionQueries& head, float* out, int64_t stride_out, float* logsum,
                      int64_t heads, float* logits) {
    for (int64_t i = 0; i < head.nodes; i += W) {
      block(head, i, out, stride_out, logsum, heads, logits);
    }
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
