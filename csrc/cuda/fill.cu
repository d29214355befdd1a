// fs_noise_fill on a GPU: a thread draws the four normals of a Philox block. Compile with
// --fmad=false.

#include "device.h"
#include "launch.h"
#include "quad.h"
#include "rules.h"

namespace fs {
namespace {

template <class T, bool Whole>
__global__ void __launch_bounds__(kMostThreads) fill(const __grid_constant__ fs_noise_args a) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x * kQuad;
#pragma unroll 1
  for (int64_t b = blockIdx.y; b < a.batch; b += gridDim.y) {
    const Draw draw = draw_of(a, b, a.id);
    T* out = static_cast<T*>(a.out) + b * a.elements;
#pragma unroll 1
    for (int64_t e = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * kQuad; e < a.elements;
         e += stride) {
      const int64_t left = a.elements - e;
      store<Whole>(out + e, normals_quad<T>(draw, static_cast<uint64_t>(e / kQuad)),
                   left < kQuad ? static_cast<int>(left) : kQuad);
    }
  }
}

template <class T>
void fill_of(const fs_noise_args& a, const Call& call, const Cut& cut) {
  if (a.elements % kQuad == 0 && is_aligned(a.out, kQuadBytes))
    call.launch("fill", fill<T, true>, cut.grid, cut.threads, a);
  else call.launch("fill(any)", fill<T, false>, cut.grid, cut.threads, a);
}

}  // namespace

void cuda_fill(const fs_noise_args& a) {
  const Call call("fs_noise_fill", a.gpu, a.stream);
  if (a.batch == 0 || a.elements == 0) return;
  const Cut cut = cut_of(a.batch, a.elements);
  if (a.dtype == FS_F64) fill_of<double>(a, call, cut);
  else fill_of<float>(a, call, cut);
}

}  // namespace fs
