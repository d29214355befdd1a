// Numbers of the four dtypes, widened and narrowed a block at a time, rounding to nearest even.
// Plain integer loops, so that every instruction set gives the same bits; with F16C the hardware's
// conversion, which agrees on all but NaNs.
#pragma once

#include <cstdint>
#include <cstring>

#include "fastsample/fastsample.h"
#include "hd.h"

#if defined(__F16C__) && !defined(__CUDACC__)
#define FS_HARDWARE_HALF
#include <immintrin.h>
#endif

namespace fs {

FS_HD constexpr int64_t dtype_size(int dtype) {
  return dtype == FS_F64 ? 8 : dtype == FS_F32 ? 4 : 2;
}

// Everything below has internal linkage: this header is compiled once per instruction set.
namespace {

FS_HD inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

FS_HD inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// Normal: re-bias the exponent by 112. Exponent 0: mantissa * 2^-24, exact. Exponent 31: infinity
// or NaN.
FS_HD inline float from_half(uint16_t half) {
  const uint32_t sign = (half & 0x8000u) << 16, rest = half & 0x7FFFu;
  const uint32_t normal = (rest << 13) + (112u << 23);
  const uint32_t small =
      bits_of(static_cast<float>(static_cast<int32_t>(rest & 0x3FFu)) * 0x1p-24f);
  const uint32_t big = (rest << 13) | 0x7F800000u;
  return float_of(sign | (rest >= 0x7C00u ? big : rest >= 0x400u ? normal : small));
}

// Below 2^-14 adding 0.5 leaves the mantissa in units of 2^-24, rounded by the addition itself.
FS_HD inline uint16_t to_half(float value) {
  const uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000u, rest = bits & 0x7FFFFFFFu;
  const uint32_t normal = (rest - (112u << 23) + 0xFFFu + (rest >> 13 & 1u)) >> 13;
  const uint32_t small = bits_of(float_of(rest) + 0.5f) - bits_of(0.5f);
  const uint32_t big = rest > 0x7F800000u ? 0x7E00u : 0x7C00u;
  return static_cast<uint16_t>(sign | (rest >= 0x47800000u   ? big
                                       : rest >= 0x38800000u ? normal
                                                             : small));
}

FS_HD inline float from_bfloat(uint16_t half) {
  return float_of(static_cast<uint32_t>(half) << 16);
}

FS_HD inline uint16_t to_bfloat(float value) {
  const uint32_t bits = bits_of(value);
  const uint32_t rounded = (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
  return static_cast<uint16_t>((bits & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u : rounded);
}

template <class T>
void widen_half(const uint16_t* __restrict__ in, T* __restrict__ out, int64_t n) {
  int64_t i = 0;
#ifdef FS_HARDWARE_HALF
  if constexpr (sizeof(T) == 4) {
    for (; i + 8 <= n; i += 8)
      _mm256_storeu_ps(out + i,
                       _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i))));
  }
#endif
  for (; i < n; ++i) out[i] = static_cast<T>(from_half(in[i]));
}

template <class T>
void narrow_half(const T* __restrict__ in, uint16_t* __restrict__ out, int64_t n, T scale) {
  int64_t i = 0;
#ifdef FS_HARDWARE_HALF
  if constexpr (sizeof(T) == 4) {
    const __m256 factor = _mm256_set1_ps(scale);
    for (; i + 8 <= n; i += 8) {
      const __m256 value = _mm256_mul_ps(factor, _mm256_loadu_ps(in + i));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i),
                       _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    }
  }
#endif
  for (; i < n; ++i) out[i] = to_half(static_cast<float>(scale * in[i]));
}

// out[i] = (T) in[first + i]. float64 into a float32 is rounded once.
template <class T>
void widen(const void* in, int dtype, int64_t first, T* __restrict__ out, int64_t n) {
  if (dtype == FS_F32) {
    const float* from = static_cast<const float*>(in) + first;
    for (int64_t i = 0; i < n; ++i) out[i] = static_cast<T>(from[i]);
  } else if (dtype == FS_F64) {
    const double* from = static_cast<const double*>(in) + first;
    for (int64_t i = 0; i < n; ++i) out[i] = static_cast<T>(from[i]);
  } else if (dtype == FS_F16) {
    widen_half(static_cast<const uint16_t*>(in) + first, out, n);
  } else {
    const uint16_t* from = static_cast<const uint16_t*>(in) + first;
    for (int64_t i = 0; i < n; ++i) out[i] = static_cast<T>(from_bfloat(from[i]));
  }
}

// n numbers of `data` from `first`, in T: where they lie if they are T already, else in `room`.
template <class T>
const T* numbers_in(const void* data, int dtype, int64_t first, T* room, int64_t n) {
  if (dtype == (sizeof(T) == 8 ? FS_F64 : FS_F32)) return static_cast<const T*>(data) + first;
  widen(data, dtype, first, room, n);
  return room;
}

// out[first + i] = dtype(scale * in[i]); the product is rounded to T, then to float32 for 16-bit
// dtypes, then to them.
template <class T>
void narrow_scaled(const T* __restrict__ in, T scale, void* out, int dtype, int64_t first,
                   int64_t n) {
  if (dtype == FS_F32) {
    float* __restrict__ to = static_cast<float*>(out) + first;
    for (int64_t i = 0; i < n; ++i) to[i] = static_cast<float>(scale * in[i]);
  } else if (dtype == FS_F64) {
    double* __restrict__ to = static_cast<double*>(out) + first;
    for (int64_t i = 0; i < n; ++i) to[i] = static_cast<double>(scale * in[i]);
  } else if (dtype == FS_F16) {
    narrow_half(in, static_cast<uint16_t*>(out) + first, n, scale);
  } else {
    uint16_t* __restrict__ to = static_cast<uint16_t*>(out) + first;
    for (int64_t i = 0; i < n; ++i) to[i] = to_bfloat(static_cast<float>(scale * in[i]));
  }
}

}  // namespace
}  // namespace fs
