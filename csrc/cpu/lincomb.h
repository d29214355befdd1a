// out = c_0 v_0 + c_1 v_1 + ...: products rounded, added in order. Compiled once per instruction
// set.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace fs {
namespace {

template <class T, int N, bool More>
__attribute__((noinline)) void lincomb_of(const T* const* v, const T* c, T* __restrict__ out,
                                          int64_t n) {
  const T* p[8] = {};
  T k[8] = {};
  for (int j = 0; j < N; ++j) p[j] = v[j], k[j] = c[j];
  const T *p0 = p[0], *p1 = p[1], *p2 = p[2], *p3 = p[3], *p4 = p[4], *p5 = p[5];
  const T k0 = k[0], k1 = k[1], k2 = k[2], k3 = k[3], k4 = k[4], k5 = k[5];
  FS_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    T sum = k0 * p0[i];
    if constexpr (More) sum = out[i] + sum;
    if constexpr (N > 1) sum = sum + k1 * p1[i];
    if constexpr (N > 2) sum = sum + k2 * p2[i];
    if constexpr (N > 3) sum = sum + k3 * p3[i];
    if constexpr (N > 4) sum = sum + k4 * p4[i];
    if constexpr (N > 5) sum = sum + k5 * p5[i];
    out[i] = sum;
  }
}

constexpr int kAtOnce = 6;

template <class T, bool More>
void lincomb_few(const T* const* v, const T* c, int terms, T* out, int64_t n) {
  switch (terms) {
    case 1: return lincomb_of<T, 1, More>(v, c, out, n);
    case 2: return lincomb_of<T, 2, More>(v, c, out, n);
    case 3: return lincomb_of<T, 3, More>(v, c, out, n);
    case 4: return lincomb_of<T, 4, More>(v, c, out, n);
    case 5: return lincomb_of<T, 5, More>(v, c, out, n);
    default: return lincomb_of<T, kAtOnce, More>(v, c, out, n);
  }
}

// No term gives +0.
template <class T>
void lincomb(const T* const* v, const T* c, int terms, T* __restrict__ out, int64_t n) {
  if (terms == 0) {
    for (int64_t i = 0; i < n; ++i) out[i] = 0;
    return;
  }
  lincomb_few<T, false>(v, c, terms < kAtOnce ? terms : kAtOnce, out, n);
  for (int k = kAtOnce; k < terms; k += kAtOnce) {
    lincomb_few<T, true>(v + k, c + k, terms - k < kAtOnce ? terms - k : kAtOnce, out, n);
  }
}

}  // namespace
}  // namespace fs
