// fs_noise_fill: unit normals of a sample.

#include "core/philox.h"
#include "kernels.h"

namespace fs {
namespace FS_ISA {

void noise(const fs_noise_args& a, int64_t b, int64_t first, int64_t last) {
  const Draw draw = draw_of(a, b, a.id);
  const int64_t e = first * kBlock,
                n = (last * kBlock < a.elements ? last * kBlock : a.elements) - e,
                at = b * a.elements + e;
  if (a.dtype == FS_F64) normals(draw, e, n, static_cast<double*>(a.out) + at);
  else normals(draw, e, n, static_cast<float*>(a.out) + at);
}

}  // namespace FS_ISA
}  // namespace fs
