// C[i,j] = mean_d |sum_r U_r[i,d] c_r[i,j] - X[j,d]|^p (fastsample.h, fs_cost_matrix).
//
// A strip of kStrip elements of kTargets targets stays in the L1 cache while all sources pass by;
// within it each element of a source is loaded once for all targets, whose coefficients and sums
// live in registers. float32 sums run over kFlush elements, then go to float64. Fused multiply-adds
// are welcome here: this file is compiled with them.

#include <cstring>

#include "core/dtype.h"
#include "kernels.h"

namespace fs {
namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64, kPass = 8;
#elif defined(__AVX__)
constexpr int kBytes = 32, kPass = 4;  // 16 registers hold the sums and coefficients of 4 targets
#else
constexpr int kBytes = 16, kPass = 4;
#endif
constexpr int kTargets = 8;
constexpr int64_t kStrip = 512, kFlush = 256;

template <class T>
struct Vector {
  static constexpr int kLanes = kBytes / static_cast<int>(sizeof(T));
  static constexpr int kSums = kLanes < 8 ? kLanes : 8;  // float64 sums a target keeps
  typedef T type __attribute__((vector_size(kBytes)));
  typedef T loose
      __attribute__((vector_size(kBytes), aligned(sizeof(T)), may_alias));  // any element's address
  typedef T part __attribute__((vector_size(kSums * sizeof(T))));
  typedef double sums __attribute__((vector_size(kSums * sizeof(double))));
};

// A tile: one source against kTargets targets, a strip long.
template <class T>
struct Tile {
  const T* u[FS_MAX_TERMS];
  const T* x[kTargets];
  T c[kTargets][FS_MAX_TERMS];
};

// Adds the lanes of a register to float64 sums.
template <class T>
inline void flush(const typename Vector<T>::type& lanes, typename Vector<T>::sums& sums) {
  typename Vector<T>::part part[Vector<T>::kLanes / Vector<T>::kSums];
  std::memcpy(part, &lanes, sizeof lanes);
  for (const auto& p : part) sums += __builtin_convertvector(p, typename Vector<T>::sums);
}

// Squared differences of targets [first, first + kPass) over n elements, a multiple of the lanes.
template <class T, int R>
__attribute__((noinline)) void square_pass(const Tile<T>& tile, int first, int64_t n,
                                           typename Vector<T>::sums* sums) {
  using V = typename Vector<T>::type;
  using L = typename Vector<T>::loose;
  V c[kPass][R];
  const T *x[kPass], *from[R];
  for (int r = 0; r < R; ++r) from[r] = tile.u[r];
  for (int j = 0; j < kPass; ++j) {
    x[j] = tile.x[first + j];
    for (int r = 0; r < R; ++r) c[j][r] = tile.c[first + j][r] - V{};
  }
  for (int64_t d = 0; d < n;) {
    const int64_t end = n - d < kFlush ? n : d + kFlush;
    V sum[kPass] = {};
    for (; d < end; d += Vector<T>::kLanes) {
      V u[R];
      for (int r = 0; r < R; ++r) u[r] = *reinterpret_cast<const L*>(from[r] + d);
      for (int j = 0; j < kPass; ++j) {
        V diff = u[0] * c[j][0] - *reinterpret_cast<const L*>(x[j] + d);
        for (int r = 1; r < R; ++r) diff += u[r] * c[j][r];
        sum[j] += diff * diff;
      }
    }
    for (int j = 0; j < kPass; ++j) flush<T>(sum[j], sums[first + j]);
  }
}

// Element d of target j's difference.
template <int R, class T>
T difference(const Tile<T>& tile, int j, int64_t d) {
  T diff = -tile.x[j][d];
  for (int r = 0; r < R; ++r) diff += tile.u[r][d] * tile.c[j][r];
  return diff;
}

template <class T, int R>
void square_tile(const Tile<T>& tile, int64_t n, double* sums) {
  constexpr int kSums = Vector<T>::kSums;
  const int64_t whole = n / Vector<T>::kLanes * Vector<T>::kLanes;
  typename Vector<T>::sums lanes[kTargets] = {};
  for (int first = 0; first < kTargets; first += kPass)
    square_pass<T, R>(tile, first, whole, lanes);
  for (int j = 0; j < kTargets; ++j) {
    double rest = 0;
    for (int64_t d = whole; d < n; ++d) {
      const double diff = static_cast<double>(difference<R>(tile, j, d));
      rest += diff * diff;
    }
    sums[j] += halved<kSums>(lanes[j]) + rest;
  }
}

template <class T, int R>
void power_tile(const Tile<T>& tile, int64_t n, double p, double* sums) {
  for (int j = 0; j < kTargets; ++j) {
    for (int64_t d = 0; d < n; ++d) {
      const double magnitude = __builtin_fabs(static_cast<double>(difference<R>(tile, j, d)));
      sums[j] += p == 1 ? magnitude : __builtin_pow(magnitude, p);
    }
  }
}

template <class T>
void add_tile(const Tile<T>& tile, int terms, int64_t n, double p, double* sums) {
  constant<1, FS_MAX_TERMS>(terms, [&](auto R) {
    if (p == 2) square_tile<T, R>(tile, n, sums);
    else power_tile<T, R>(tile, n, p, sums);
  });
}

// Targets [j, j + kTargets) against sources [first, last) over elements [d, d + n). Targets outside
// a source's band repeat one inside it, and their sums are dropped.
template <class T>
void add_strip(const fs_cost_args& a, int64_t b, int64_t first, int64_t last, int64_t j, int64_t d,
               int64_t n) {
  alignas(64) T x_room[kTargets][kStrip], u_room[FS_MAX_TERMS][kStrip];
  Tile<T> tile;
  const T* x[kTargets];
  for (int k = 0; k < kTargets; ++k) {
    const int64_t target = j + k < a.J ? j + k : a.J - 1;
    x[k] = numbers_in(a.X, a.dtype, (b * a.J + target) * a.D + d, x_room[k], n);
  }
  for (int64_t i = first; i < last; ++i) {
    auto [low, high] = band_of(a, i);
    if (low < j) low = j;
    if (high > j + kTargets) high = j + kTargets;
    if (low >= high) continue;
    for (int r = 0; r < a.terms; ++r)
      tile.u[r] = numbers_in(a.U[r], a.dtype, (b * a.I + i) * a.D + d, u_room[r], n);
    for (int k = 0; k < kTargets; ++k) {
      const int64_t target = j + k < low ? low : j + k >= high ? high - 1 : j + k;
      tile.x[k] = x[target - j];
      for (int r = 0; r < a.terms; ++r)
        tile.c[k][r] = static_cast<T>(a.c[(r * a.I + i) * a.J + target]);
    }
    double sums[kTargets] = {};
    add_tile(tile, a.terms, n, a.p, sums);
    double* out = static_cast<double*>(a.out) + (b * a.I + i) * a.J;
    for (int64_t target = low; target < high; ++target) out[target] += sums[target - j];
  }
}

template <class T>
void fill_rows(const fs_cost_args& a, int64_t b, int64_t first, int64_t last) {
  double* out = static_cast<double*>(a.out) + b * a.I * a.J;
  for (int64_t k = first * a.J; k < last * a.J; ++k) out[k] = 0;
  for (int64_t d = 0; d < a.D; d += kStrip) {
    const int64_t n = a.D - d < kStrip ? a.D - d : kStrip;
    for (int64_t j = 0; j < a.J; j += kTargets) add_strip<T>(a, b, first, last, j, d, n);
  }
  for (int64_t i = first; i < last; ++i) {
    const auto [low, high] = band_of(a, i);
    for (int64_t j = 0; j < a.J; ++j) {
      const bool inside = j >= low && j < high;
      out[i * a.J + j] = inside ? out[i * a.J + j] / static_cast<double>(a.D) : __builtin_inf();
    }
  }
}

}  // namespace

namespace FS_ISA {

void cost_matrix(const fs_cost_args& a, int64_t sample, int64_t first, int64_t last) {
  if (a.dtype == FS_F64) fill_rows<double>(a, sample, first, last);
  else fill_rows<float>(a, sample, first, last);
}

}  // namespace FS_ISA
}  // namespace fs
