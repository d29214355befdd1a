// The CPU kernels as range functions. Each source of this folder but dispatch.cpp is compiled once
// per instruction set with FS_ISA set to its name; dispatch.cpp picks a table at run time and
// shares the ranges out among threads. A range function allocates nothing, throws nothing and
// starts no thread.
#pragma once

#include <cstdint>
#include <type_traits>

#include "fastsample/fastsample.h"

namespace fs {

constexpr int64_t kBlock =
    1024;  // elements worked on at once: all operands of a block stay in the L1 cache
constexpr int64_t kMomentChunk = 1024;  // part of the definition of fs_moments

inline int64_t blocks_of(int64_t elements) {
  return elements <= kBlock ? 1 : (elements - 1) / kBlock + 1;
}

struct CpuKernels {
  const char* isa;
  // Blocks [first, last) of the batch x blocks_of(elements) blocks. step marks the samples that
  // must be left alone, and is false when an x' is not finite.
  bool (*step)(const fs_step_args&, int64_t first, int64_t last);
  // Blocks [first, last) of one sample.
  void (*noise)(const fs_noise_args&, int64_t sample, int64_t first, int64_t last);
  // Chunks [first, last) of one sample: sums [chunks, P, Q] where dots are asked for, max_abs
  // [chunks, P] where they are.
  void (*moments)(const fs_moments_args&, int64_t sample, int64_t first, int64_t last, double* sums,
                  double* max_abs);
  // Sources [first, last) of one sample.
  void (*cost_matrix)(const fs_cost_args&, int64_t sample, int64_t first, int64_t last);
  // Targets [first, last) of one sample.
  void (*cost_gather)(const fs_cost_args&, int64_t sample, int64_t first, int64_t last);
  // sum v^2 of n numbers of any dtype.
  double (*energy)(const void*, int dtype, int64_t n);
};

#define FS_DECLARE_ISA(isa)        \
  namespace isa {                  \
  extern const CpuKernels kernels; \
  }
FS_DECLARE_ISA(baseline)
FS_DECLARE_ISA(avx2)
FS_DECLARE_ISA(avx512)
#undef FS_DECLARE_ISA

// Sum of the squares of n numbers: NaN or infinite where one of them is (or where a float32 square
// overflows, above 1.8e19). Squares are summed in the numbers' own precision, float32 for 16 bits,
// over 64 a lane, then in float64.
double cpu_energy(const void* data, int dtype, int64_t n);

// The instruction set chosen, and the threads a large call would use now.
const char* cpu_isa();
int cpu_threads();
bool cpu_has_openmp();

// Internal linkage, as in all that is compiled once per instruction set.
namespace {

// Cuts items [first, last) of samples that have `each` items: visit(sample, low, high).
template <class Visit>
void for_samples(int64_t first, int64_t last, int64_t each, const Visit& visit) {
  while (first < last) {
    const int64_t sample = first / each, start = sample * each,
                  next = last < start + each ? last : start + each;
    visit(sample, first - start, next - start);
    first = next;
  }
}

// body(n) with n as a constant, so that it is compiled once for each of N..Last (what is above Last
// is Last).
template <int N, int Last, class Body>
void constant(int n, const Body& body) {
  if constexpr (N < Last) {
    if (n != N) return constant<N + 1, Last>(n, body);
  }
  body(std::integral_constant<int, N>());
}

// The sum of N lanes, halved N -> N/2 -> ... -> 1.
template <int N, class Lanes>
double halved(Lanes& lane) {
  for (int half = N / 2; half > 0; half /= 2) {
    for (int k = 0; k < half; ++k) lane[k] = lane[k] + lane[k + half];
  }
  return lane[0];
}

// Targets low <= j < high of a source.
struct Band {
  int64_t low, high;
};

inline Band band_of(const fs_cost_args& a, int64_t i) {
  if (!a.band) return {0, a.J};
  const int64_t low = a.band[2 * i], high = a.band[2 * i + 1];
  return {low > 0 ? low : 0, high < a.J ? high : a.J};
}

}  // namespace
}  // namespace fs

// Iterations of the loop that follows touch memory independently, though pointers may be equal: an
// output may stand where an operand of the same element stood.
#if defined(__clang__)
#define FS_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define FS_INDEPENDENT _Pragma("GCC ivdep")
#else
#define FS_INDEPENDENT
#endif
