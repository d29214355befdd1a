// out = c_0 v_0 + c_1 v_1 + ...: products rounded, added in order. Compiled once per instruction
// set.
#pragma once

#include <cstdint>
#include <utility>

#include "kernels.h"

namespace fs {
namespace {

// The first term and those of Rest, onto what stands in out where there is More.
template <bool More, class T, size_t... Rest>
__attribute__((noinline)) void lincomb_of(const T* const* v, const T* c, T* __restrict__ out,
                                          int64_t n, std::index_sequence<Rest...>) {
  const T* const p[] = {v[0], v[1 + Rest]...};
  const T k[] = {c[0], c[1 + Rest]...};
  FS_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    T sum = k[0] * p[0][i];
    if constexpr (More) sum = out[i] + sum;
    ((sum = sum + k[1 + Rest] * p[1 + Rest][i]), ...);
    out[i] = sum;
  }
}

// No term gives +0. Six terms a pass: as many pointers stay in registers.
template <class T>
void lincomb(const T* const* v, const T* c, int terms, T* __restrict__ out, int64_t n) {
  constexpr int kAtOnce = 6;
  for (int64_t i = 0; terms == 0 && i < n; ++i) out[i] = 0;
  for (int k = 0; k < terms; k += kAtOnce) {
    constant<1, kAtOnce>(terms - k, [&](auto count) {
      const auto rest = std::make_index_sequence<count - 1>();
      if (k == 0) lincomb_of<false>(v, c, out, n, rest);
      else lincomb_of<true>(v + k, c + k, out, n, rest);
    });
  }
}

}  // namespace
}  // namespace fs
