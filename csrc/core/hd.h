// What host and device compile alike carries FS_HD. Such functions have internal linkage and work
// on single numbers: loops over elements belong to each device's own files.
#pragma once

#ifdef __CUDACC__
#define FS_HD __host__ __device__
#else
#define FS_HD
#endif

namespace fs {
namespace {

// Correctly rounded on both sides.
FS_HD inline float square_root(float value) {
#ifdef __CUDA_ARCH__
  return __fsqrt_rn(value);
#else
  return __builtin_sqrtf(value);
#endif
}

}  // namespace
}  // namespace fs
