// What a step looks up and checks for one sample, before any element is touched.
#pragma once

#include <cstdint>

#include "core/row.h"
#include "fastsample/fastsample.h"

namespace fs {
namespace {

FS_HD inline Dims dims_of(const fs_step_args& a) { return {a.S, a.G, a.L, a.K, a.E}; }

FS_HD inline int64_t row_of(const fs_step_args& a, int64_t b, int64_t group) {
  return a.one_row ? a.row_number : a.row[b * a.groups + group];
}

FS_HD inline int64_t place_of(const fs_step_args& a, int64_t b) { return a.place ? a.place[b] : b; }

FS_HD inline int64_t branch_row(const fs_step_args& a, int64_t b, int g) {
  return a.f_index ? a.f_index[g * a.batch + b] : b;
}

FS_HD inline bool blends(const fs_step_args& a, const Structure& s) {
  return a.mask && a.known && s.known_reads != 0;
}

FS_HD inline int32_t status_word(int fault, int64_t row) {
  return static_cast<int32_t>(static_cast<uint32_t>(fault) |
                              (static_cast<uint32_t>(row) & 0xFFFFFFu) << 8);
}

// Bits of fs_sample_status that forbid row number `row` to sample b; 0 = none.
FS_HD inline int check_row(const fs_step_args& a, const Dims& d, int64_t b, int64_t row) {
  if (row < 0 || row >= a.table_rows) return FS_BAD_ROW;
  const Structure s = structure_of(a.table_i + row * d.ints());
  if (!row_in_range(d, s)) return FS_BAD_ROW;
  const Needs needs = needs_of(d, s, a.preview != nullptr, blends(a, s));
  for (int g = 0; g < d.G; ++g) {
    if (((needs.direct | needs.mixed) >> g & 1) == 0) continue;
    const int64_t at = branch_row(a, b, g), outputs = a.f[g] ? a.outputs : 0;
    if (at < -1 || at >= outputs || (at == -1 && (needs.direct >> g & 1) != 0))
      return FS_BAD_BRANCH;
  }
  return 0;
}

// The status word of a sample that must be left alone; 0 = it may run.
FS_HD inline int32_t check_sample(const fs_step_args& a, const Dims& d, int64_t b) {
  const int64_t place = place_of(a, b);
  int faults = 0;
  int64_t guilty = row_of(a, b, 0);
  for (int64_t g = 0; g < a.groups; ++g) {
    const int64_t row = row_of(a, b, g);
    const int fault = check_row(a, d, b, row);
    if (fault && !faults) guilty = row;
    faults |= fault;
  }
  if (place < 0 || place >= a.pool) faults |= FS_BAD_PLACE;
  return faults ? status_word(faults, guilty) : 0;
}

// w_g of a row.
template <class T>
FS_HD T branch_weight(const fs_step_args& a, const Dims& d, const T* row, int64_t b, int g) {
  if (a.weights) return static_cast<const T*>(a.weights)[b * (1 + d.G) + 1 + g];
  T w = row[d.U() + g];
  for (int k = 0; a.scale && k < d.K; ++k)
    w = w + static_cast<const T*>(a.scale)[b * d.K + k] * row[d.V() + g * d.K + k];
  return w;
}

// w_0 p of a row.
template <class T>
FS_HD T state_weight(const fs_step_args& a, const Dims& d, const T* row, int64_t b) {
  return a.weights ? static_cast<const T*>(a.weights)[b * (1 + d.G)] * row[d.p()] : row[d.p()];
}

// NaN stays NaN.
template <class T>
FS_HD T clamped(T m, T high) {
  const T raised = m < -high ? -high : m;
  return raised > high ? high : raised;
}

}  // namespace
}  // namespace fs
