// Dot products and largest magnitudes of one sample, chunk by chunk (fastsample.h, fs_moments).
// Compile with -ffp-contract=off: float64 products are rounded before they are added.

#include "core/dtype.h"
#include "kernels.h"

namespace fs {
namespace {

constexpr int kLanes = 16;

// 64 steps of 16 lanes, each lane summed in turn, then lanes halved 16 -> 8 -> 4 -> 2 -> 1.
double dot_chunk(const double* __restrict__ a, const double* __restrict__ b) {
  alignas(64) double lane[kLanes];
  for (int k = 0; k < kLanes; ++k) lane[k] = a[k] * b[k];
  for (int64_t step = kLanes; step < kMomentChunk; step += kLanes) {
    for (int k = 0; k < kLanes; ++k) lane[k] = lane[k] + a[step + k] * b[step + k];
  }
  return halved<kLanes>(lane);
}

// NaN if any is NaN.
double largest(const double* __restrict__ a) {
  double most = 0;
  int nan = 0;
  for (int64_t i = 0; i < kMomentChunk; ++i) {
    const double magnitude = __builtin_fabs(a[i]);
    nan |= magnitude != magnitude;
    most = magnitude > most ? magnitude : most;
  }
  return nan ? __builtin_nan("") : most;
}

// A chunk in float64, zeros behind the sample's end.
void load_chunk(const void* data, const fs_moments_args& a, int64_t sample, int64_t chunk,
                double* out) {
  const int64_t begin = chunk * kMomentChunk, left = a.elements - begin;
  const int64_t n = left < kMomentChunk ? left : kMomentChunk;
  widen(data, a.dtype, sample * a.elements + begin, out, n);
  for (int64_t i = n; i < kMomentChunk; ++i) out[i] = 0;
}

}  // namespace

namespace FS_ISA {

void moments(const fs_moments_args& args, int64_t sample, int64_t first, int64_t last, double* sums,
             double* max_abs) {
  alignas(64) double a[FS_MAX_MOMENTS_A][kMomentChunk];
  alignas(64) double b[kMomentChunk];
  for (int64_t chunk = first; chunk < last; ++chunk) {
    for (int p = 0; p < args.P; ++p) {
      load_chunk(args.a[p], args, sample, chunk, a[p]);
      if (args.max_abs) max_abs[chunk * args.P + p] = largest(a[p]);
    }
    for (int q = 0; args.dots && q < args.Q; ++q) {
      load_chunk(args.b[q], args, sample, chunk, b);
      for (int p = 0; p < args.P; ++p) sums[(chunk * args.P + p) * args.Q + q] = dot_chunk(a[p], b);
    }
  }
}

}  // namespace FS_ISA
}  // namespace fs
