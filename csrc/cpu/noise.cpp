// fs_noise_fill: unit normals, block by block.

#include "core/philox.h"
#include "kernels.h"

namespace fs {
namespace FS_ISA {

void noise(const fs_noise_args& a, int64_t first, int64_t last) {
  const int64_t blocks = blocks_of(a.elements);
  for (int64_t block = first; block < last; ++block) {
    const int64_t b = block / blocks, e = (block - b * blocks) * kBlock;
    const int64_t n = a.elements - e < kBlock ? a.elements - e : kBlock;
    const Draw draw{a.seed ? a.seed[b] : static_cast<uint64_t>(b), a.id, a.stage ? a.stage[b] : 0};
    if (a.dtype == FS_F32) {
      normals(draw, e, n, static_cast<float*>(a.out) + b * a.elements + e);
      continue;
    }
    alignas(64) float normal[kBlock];
    double* __restrict__ out = static_cast<double*>(a.out) + b * a.elements + e;
    normals(draw, e, n, normal);
    for (int64_t i = 0; i < n; ++i) out[i] = static_cast<double>(normal[i]);
  }
}

}  // namespace FS_ISA
}  // namespace fs
