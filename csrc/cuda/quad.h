// Quads: four elements side by side, the normals of one Philox block, 16 bytes of float32.
#pragma once

#include <cuda_runtime.h>

#include "core/dtype.h"
#include "core/philox.h"
#include "core/sample.h"

namespace fs {
namespace {

constexpr int kQuad = 4;
constexpr int kQuadBytes = 16;  // of one access

inline bool is_aligned(const void* data, int bytes) {
  return reinterpret_cast<uintptr_t>(data) % static_cast<unsigned>(bytes) == 0;
}

// The model's 16-bit numbers, told apart by type.
struct Half {
  uint16_t bits;
};
struct Bfloat {
  uint16_t bits;
};

template <class T>
struct alignas(sizeof(T) * kQuad < 16 ? sizeof(T) * kQuad : 16) Quad {
  T at[kQuad];
};

// Elements of a whole quad by 16-byte accesses (8 bytes of 16-bit numbers); else the first n of it.
template <bool Whole, class T>
__device__ __forceinline__ Quad<T> load(const T* from, int n = kQuad) {
  if constexpr (Whole) return *reinterpret_cast<const Quad<T>*>(from);
  Quad<T> quad{};
#pragma unroll
  for (int k = 0; k < kQuad; ++k) {
    if (k < n) quad.at[k] = from[k];
  }
  return quad;
}

template <bool Whole, class T>
__device__ __forceinline__ void store(T* to, const Quad<T>& quad, int n = kQuad) {
  if constexpr (Whole) {
    *reinterpret_cast<Quad<T>*>(to) = quad;
  } else {
#pragma unroll
    for (int k = 0; k < kQuad; ++k) {
      if (k < n) to[k] = quad.at[k];
    }
  }
}

template <class T>
__device__ __forceinline__ T wide(float v) {
  return static_cast<T>(v);
}
template <class T>
__device__ __forceinline__ T wide(double v) {
  return static_cast<T>(v);
}
template <class T>
__device__ __forceinline__ T wide(Half v) {
  return static_cast<T>(from_half(v.bits));
}
template <class T>
__device__ __forceinline__ T wide(Bfloat v) {
  return static_cast<T>(from_bfloat(v.bits));
}

template <class T>
__device__ __forceinline__ void narrow(T v, float& to) {
  to = static_cast<float>(v);
}
template <class T>
__device__ __forceinline__ void narrow(T v, double& to) {
  to = static_cast<double>(v);
}
template <class T>
__device__ __forceinline__ void narrow(T v, Half& to) {
  to.bits = to_half(static_cast<float>(v));
}
template <class T>
__device__ __forceinline__ void narrow(T v, Bfloat& to) {
  to.bits = to_bfloat(static_cast<float>(v));
}

template <class T, class F>
__device__ __forceinline__ Quad<T> widened(const Quad<F>& quad) {
  Quad<T> out;
#pragma unroll
  for (int k = 0; k < kQuad; ++k) out.at[k] = wide<T>(quad.at[k]);
  return out;
}

// F(c v): the product rounded to T first.
template <class F, class T>
__device__ __forceinline__ Quad<F> scaled(T c, const Quad<T>& v) {
  Quad<F> out;
#pragma unroll
  for (int k = 0; k < kQuad; ++k) narrow(c * v.at[k], out.at[k]);
  return out;
}

// A sum of terms begins at -0, which changes no bit of the first one; a sum without terms is +0.
template <class T>
__device__ __forceinline__ Quad<T> no_sum() {
  constexpr T zero = static_cast<T>(-0.0);
  return {zero, zero, zero, zero};
}

// sum + c v, the product rounded: compile with --fmad=false.
template <class T>
__device__ __forceinline__ void add(Quad<T>& sum, T c, const Quad<T>& v) {
#pragma unroll
  for (int k = 0; k < kQuad; ++k) sum.at[k] = sum.at[k] + c * v.at[k];
}

template <class T>
__device__ __forceinline__ void clamp(Quad<T>& m, T high) {
#pragma unroll
  for (int k = 0; k < kQuad; ++k) m.at[k] = clamped(m.at[k], high);
}

// The normals of a Philox block.
template <class T>
__device__ __forceinline__ Quad<T> normals_quad(const Draw& draw, uint64_t block) {
  Quad<T> out;
  normals_tile<1>(draw, [=](int) { return block; }, out.at);
  return out;
}

// Are the first n numbers finite?
template <class T>
__device__ __forceinline__ bool is_finite(const Quad<T>& v, int n) {
  bool finite = true;
#pragma unroll
  for (int k = 0; k < kQuad; ++k) finite = finite && (k >= n || v.at[k] - v.at[k] == 0);
  return finite;
}

}  // namespace
}  // namespace fs
