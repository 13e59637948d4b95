// Vectors of floats, read from and written to memory that holds float32 or bfloat16. Everything is
// inlined, so that the code takes the instruction set of the function that it is inlined into.
#pragma once

#include <c10/util/BFloat16.h>

#include <cstdint>
#include <type_traits>

#include "../common/simd.h"

namespace ghn {

template <class T, int W>
struct Lanes {
  typedef typename Vector<float, W>::type V;
  typedef std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t> Raw;
  typedef typename Vector<Raw, W>::type R;
  typedef typename Vector<uint32_t, W>::type U;

  static GHN_INLINE V widen(R raw) {
    if constexpr (sizeof(T) == 4) {
      return bit_cast<V>(raw);
    } else {
      return bit_cast<V>(__builtin_convertvector(raw, U) << 16);
    }
  }

  // To the nearest, ties to even; NaN stays NaN.
  static GHN_INLINE R narrow(V v) {
    const U bits = bit_cast<U>(v);
    if constexpr (sizeof(T) == 4) {
      return bits;
    } else {
      const U rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
      const U quiet = (bits >> 16) | 0x40;
      const U chosen = v == v ? rounded : quiet;
      return __builtin_convertvector(chosen, R);
    }
  }

  static GHN_INLINE V load(const T* at) {
    R raw;
    __builtin_memcpy(&raw, at, sizeof(R));
    return widen(raw);
  }

  static GHN_INLINE void store(T* at, V v) {
    const R raw = narrow(v);
    __builtin_memcpy(at, &raw, sizeof(R));
  }

  // The first `n` of W; the rest are zeros.
  static GHN_INLINE V load_some(const T* at, int n) {
    R raw{};
    copy_some(&raw, at, n);
    return widen(raw);
  }

  static GHN_INLINE void copy_some(void* to, const void* from, int n) {
    pieces<W / 2>(static_cast<char*>(to), static_cast<const char*>(from), n);
  }

 private:
  template <int SIZE>
  static GHN_INLINE void pieces(char* to, const char* from, int n) {
    if (n & SIZE) {
      __builtin_memcpy(to, from, SIZE * sizeof(T));
      to += SIZE * sizeof(T), from += SIZE * sizeof(T);
    }
    if constexpr (SIZE > 1) pieces<SIZE / 2>(to, from, n);
  }
};

}  // namespace ghn
