// fs_cost_gather on a GPU: Z[b,j] = sum_r U_r[b,i*] c_r[i*,j], products rounded, added in order.
// Compile with --fmad=false.

#include "device.h"
#include "launch.h"
#include "quad.h"
#include "rules.h"

namespace fs {
namespace {

template <class T, class F>
__device__ __forceinline__ Quad<F> rounded(const Quad<T>& v) {
  return scaled<F>(static_cast<T>(1), v);
}

// Blocks of a target along x, targets of all samples along y. An i* that is no source gives NaN.
template <class T, class F, bool Whole>
__global__ void __launch_bounds__(kMostThreads)
    cost_gather(const __grid_constant__ fs_cost_args a) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x * kQuad;
#pragma unroll 1
  for (int64_t row = blockIdx.y; row < a.batch * a.J; row += gridDim.y) {
    const int64_t b = row / a.J, j = row % a.J, i = a.i_star[b * a.i_star_batch_stride + j];
    const bool there = i >= 0 && i < a.I;
    T c[FS_MAX_TERMS] = {};
#pragma unroll
    for (int r = 0; r < FS_MAX_TERMS; ++r) {
      if (there && r < a.terms) c[r] = static_cast<T>(a.c[(r * a.I + i) * a.J + j]);
    }
    const int64_t from = (b * a.I + i) * a.D;
    F* out = static_cast<F*>(a.out) + row * a.D;
#pragma unroll 1
    for (int64_t d = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * kQuad; d < a.D;
         d += stride) {
      const int n = a.D - d < kQuad ? static_cast<int>(a.D - d) : kQuad;
      constexpr T nan = static_cast<T>(__builtin_nan(""));
      Quad<T> sum = {nan, nan, nan, nan};
      if (there) sum = no_sum<T>();
#pragma unroll
      for (int r = 0; r < FS_MAX_TERMS; ++r) {
        if (!there || r >= a.terms) continue;
        add(sum, c[r], widened<T>(load<Whole>(static_cast<const F*>(a.U[r]) + from + d, n)));
      }
      store<Whole>(out + d, rounded<T, F>(sum), n);
    }
  }
}

template <class T, class F>
void launch_of(const fs_cost_args& a, const Call& call) {
  const int bytes = sizeof(F) * kQuad < kQuadBytes ? sizeof(F) * kQuad : kQuadBytes;
  bool whole = a.D % kQuad == 0 && is_aligned(a.out, bytes);
  for (int r = 0; r < a.terms; ++r) whole = whole && is_aligned(a.U[r], bytes);
  const Cut cut = cut_of(a.batch * a.J, a.D);
  if (whole) call.launch("cost_gather", cost_gather<T, F, true>, cut.grid, cut.threads, a);
  else call.launch("cost_gather(any)", cost_gather<T, F, false>, cut.grid, cut.threads, a);
}

}  // namespace

void cuda_cost_gather(const fs_cost_args& a) {
  const Call call("fs_cost_gather", a.gpu, a.stream);
  if (a.batch == 0 || a.J == 0 || a.D == 0) return;
  switch (a.dtype) {
    case FS_F32: return launch_of<float, float>(a, call);
    case FS_F64: return launch_of<double, double>(a, call);
    case FS_F16: return launch_of<float, Half>(a, call);
    default: return launch_of<float, Bfloat>(a, call);
  }
}

}  // namespace fs
