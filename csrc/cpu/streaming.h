// Copies of scaled values, through the caches or past them.
#pragma once

#include <algorithm>
#include <cstdint>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace ghn {

template <class T>
inline void copy_scaled(T* __restrict__ to, const T* __restrict__ from, int64_t n, T scale) {
  for (int64_t k = 0; k < n; ++k) to[k] = from[k] * scale;
}

// As copy_scaled; whole cache lines of `to` are not read first and do not stay in the caches. Other
// threads see them after finish_streaming().
template <class T>
inline void stream_scaled(T* to, const T* from, int64_t n, T scale) {
#if defined(__SSE2__)
  constexpr int64_t kLine = 64 / sizeof(T);
  const int64_t misfit = int64_t(reinterpret_cast<uintptr_t>(to) / sizeof(T)) % kLine;
  const int64_t head = std::min(n, (kLine - misfit) % kLine);
  copy_scaled(to, from, head, scale);
  int64_t k = head;
  for (; k + kLine <= n; k += kLine) {
    if constexpr (sizeof(T) == 4) {
      const __m128 s = _mm_set1_ps(scale);
      for (int64_t i = k; i < k + kLine; i += 4) {
        _mm_stream_ps(to + i, _mm_mul_ps(_mm_loadu_ps(from + i), s));
      }
    } else {
      const __m128d s = _mm_set1_pd(scale);
      for (int64_t i = k; i < k + kLine; i += 2) {
        _mm_stream_pd(to + i, _mm_mul_pd(_mm_loadu_pd(from + i), s));
      }
    }
  }
  copy_scaled(to + k, from + k, n - k, scale);
#else
  copy_scaled(to, from, n, scale);
#endif
}

inline void finish_streaming() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

}  // namespace ghn
