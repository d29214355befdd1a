// Z[j] = sum_r U_r[i*_j] c_r[i*_j, j] (fastsample.h, fs_cost_gather).

#include "core/dtype.h"
#include "kernels.h"
#include "lincomb.h"

namespace fs {
namespace {

template <class T>
void gather(const fs_cost_args& a, int64_t b, int64_t j, int64_t i) {
  alignas(64) T room[FS_MAX_TERMS][kBlock];
  alignas(64) T out[kBlock];
  const T* at[FS_MAX_TERMS];
  T coef[FS_MAX_TERMS];
  for (int r = 0; i >= 0 && r < a.terms; ++r)
    coef[r] = static_cast<T>(a.c[(r * a.I + i) * a.J + j]);
  for (int64_t d = 0; d < a.D; d += kBlock) {
    const int64_t n = a.D - d < kBlock ? a.D - d : kBlock;
    if (i < 0) {
      for (int64_t k = 0; k < n; ++k) out[k] = static_cast<T>(__builtin_nan(""));
    } else {
      for (int r = 0; r < a.terms; ++r)
        at[r] = numbers_in(a.U[r], a.dtype, (b * a.I + i) * a.D + d, room[r], n);
      lincomb(at, coef, a.terms, out, n);
    }
    narrow_scaled(out, static_cast<T>(1), a.out, a.dtype, (b * a.J + j) * a.D + d, n);
  }
}

}  // namespace

namespace FS_ISA {

void cost_gather(const fs_cost_args& a, int64_t sample, int64_t first, int64_t last) {
  for (int64_t j = first; j < last; ++j) {
    const int64_t i = a.i_star[sample * a.i_star_batch_stride + j];
    if (a.dtype == FS_F64) gather<double>(a, sample, j, i);
    else gather<float>(a, sample, j, i);
  }
}

}  // namespace FS_ISA
}  // namespace fs
