// sum v^2 of n numbers. Nothing promises its bits: this file is compiled with fused multiply-adds.

#include "core/dtype.h"
#include "kernels.h"

namespace fs {
namespace {

constexpr int kLanes = 64;
constexpr int64_t kChunk = 64 * kLanes;

template <class T>
double squares(const T* __restrict__ v, int64_t n) {
  alignas(64) T lane[kLanes] = {};
  alignas(64) double sum[kLanes];
  const int64_t whole = n - n % kLanes;
  for (int64_t e = 0; e < whole; e += kLanes) {
    for (int k = 0; k < kLanes; ++k) lane[k] = lane[k] + v[e + k] * v[e + k];
  }
  for (int64_t e = whole; e < n; ++e) lane[e - whole] = lane[e - whole] + v[e] * v[e];
  for (int k = 0; k < kLanes; ++k) sum[k] = static_cast<double>(lane[k]);
  return halved<kLanes>(sum);
}

template <class T>
double energy_in(const void* data, int dtype, int64_t n) {
  alignas(64) T room[kChunk];
  double sum = 0;
  for (int64_t e = 0; e < n; e += kChunk) {
    const int64_t here = n - e < kChunk ? n - e : kChunk;
    sum += squares(numbers_in(data, dtype, e, room, here), here);
  }
  return sum;
}

}  // namespace

namespace FS_ISA {

double energy(const void* data, int dtype, int64_t n) {
  return dtype == FS_F64 ? energy_in<double>(data, dtype, n) : energy_in<float>(data, dtype, n);
}

}  // namespace FS_ISA
}  // namespace fs
