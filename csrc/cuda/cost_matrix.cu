// fs_cost_matrix on a GPU: C[i,j] = mean_d |sum_r U_r[i,d] c_r[i,j] - X[j,d]|^p. Direct
// differences, every multiply-add written as one; the same bits every time, since no sum depends on
// who is first.
//
// Squares go by tiles: a warp has 4 (or 2) sources and 8 targets, its lanes go along the elements,
// 16 bytes each, so that a load serves 8 targets or 4 sources. A lane adds kFlush elements in T,
// then the 32 sums of the tile are added over the lanes in float64. Other powers and sizes go a
// pair of rows a warp. A long D is split among blocks, whose sums a second launch adds in order.

#include "device.h"
#include "launch.h"
#include "quad.h"
#include "rules.h"

namespace fs {
namespace {

constexpr int kTargets = 8, kWarps = 4, kWarpsI = 2, kWarpsJ = kWarps / kWarpsI;
constexpr int kThreadsOfTiles = kWarps * kWarp;
constexpr int kFlush = 256;  // elements of a lane's sum in T
constexpr int64_t kStrip = int64_t{kFlush} * kWarp;

// Sources of a warp's tile: as many as leave the operands of a strip in registers.
FS_HD constexpr int sources_of(int terms, bool wide) { return terms <= 2 && !wide ? 4 : 2; }

struct Cost {
  fs_cost_args a;
  int64_t part, tiles_i, tiles_j;  // part: elements of a split, a multiple of kStrip
  double* partial;                 // [splits, B, I, J]
};

__device__ __forceinline__ float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
__device__ __forceinline__ double multiply_add(double a, double b, double c) {
  return fma(a, b, c);
}

struct Band {
  int64_t low, high;
};

__device__ __forceinline__ Band band_of(const fs_cost_args& a, int64_t i) {
  if (!a.band) return {0, a.J};
  const int64_t low = a.band[2 * i], high = a.band[2 * i + 1];
  return {low > 0 ? low : 0, high < a.J ? high : a.J};
}

// 16 bytes of T.
template <class T>
struct Wide {
  static constexpr int kCount = 16 / static_cast<int>(sizeof(T));
  T at[kCount];
};

template <class T, class F>
__device__ __forceinline__ Wide<T> load_wide(const void* data, int64_t at) {
  struct alignas(sizeof(F) * Wide<T>::kCount) Pack {
    F at[Wide<T>::kCount];
  };
  const Pack pack = *reinterpret_cast<const Pack*>(static_cast<const F*>(data) + at);
  Wide<T> out;
#pragma unroll
  for (int k = 0; k < Wide<T>::kCount; ++k) out.at[k] = wide<T>(pack.at[k]);
  return out;
}

// Adds v[k] over the lanes of the warp, N = 16 or 32; v[0] of lane l is the sum of v[l % N]. Lanes
// that are one too many add alike, then each half of them goes on with its half of the sums.
template <int N, int Half = kWarp / 2>
__device__ __forceinline__ void sum_for_lane(double* v, int lane) {
  if constexpr (Half > 0) {
    const bool upper = (lane & Half) != 0;
#pragma unroll
    for (int k = 0; k < (Half < N ? Half : N); ++k) {
      double sent = v[k], kept = v[k];
      if constexpr (Half < N) sent = upper ? v[k] : v[k + Half], kept = upper ? v[k + Half] : v[k];
      v[k] = kept + __shfl_xor_sync(0xFFFFFFFFu, sent, Half);
    }
    sum_for_lane<N, Half / 2>(v, lane);
  }
}

// A warp's tile: its rows of U and X, and the coefficients of their pairs.
template <class T, class F, int R, int I>
struct Tile {
  int64_t u, x, D;  // element 0 of the first source, of the first target
  T (*c)[I][kTargets];

  __device__ __forceinline__ void add_strip(const fs_cost_args& a, int64_t d,
                                            T (&sum)[I][kTargets]) const {
    Wide<T> target[kTargets], source[I][R];
#pragma unroll
    for (int j = 0; j < kTargets; ++j) target[j] = load_wide<T, F>(a.X, x + j * D + d);
#pragma unroll
    for (int i = 0; i < I; ++i) {
#pragma unroll
      for (int r = 0; r < R; ++r) source[i][r] = load_wide<T, F>(a.U[r], u + i * D + d);
    }
#pragma unroll
    for (int i = 0; i < I; ++i) {
      asm volatile("" ::: "memory");  // coefficients stay in shared memory: in registers they spill
#pragma unroll
      for (int j = 0; j < kTargets; ++j) {
#pragma unroll
        for (int k = 0; k < Wide<T>::kCount; ++k) {
          T gap = multiply_add(source[i][0].at[k], c[0][i][j], -target[j].at[k]);
#pragma unroll
          for (int r = 1; r < R; ++r) gap = multiply_add(source[i][r].at[k], c[r][i][j], gap);
          sum[i][j] = multiply_add(gap, gap, sum[i][j]);
        }
      }
    }
  }
};

// Blocks: (groups of 2 x 2 tiles, samples, splits). Two terms of float32 spill on sm_120 when three
// blocks of theirs are to be resident.
template <class T, class F, int R>
__global__ void __launch_bounds__(kThreadsOfTiles, sizeof(T) == 4 && R != 2 ? 3 : 2)
    cost_tiles(const __grid_constant__ Cost s) {
  constexpr int I = sources_of(R, sizeof(T) == 8);
  __shared__ T coefficients[kWarps][R][I][kTargets];
  const fs_cost_args& a = s.a;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t begin = blockIdx.z * s.part;
  const int64_t end = begin + s.part < a.D ? begin + s.part : a.D;
  int64_t i0 = (blockIdx.x / s.tiles_j * kWarpsI + warp / kWarpsJ) * I;
  int64_t j0 = (blockIdx.x % s.tiles_j * kWarpsJ + warp % kWarpsJ) * kTargets;
  bool wanted = false;
  for (int64_t i = i0; i < i0 + I && i < a.I; ++i) {
    const Band band = band_of(a, i);
    wanted = wanted || (band.low < j0 + kTargets && band.high > j0 && band.low < band.high);
  }
  if (!wanted) return;
  // A tile over the edge is pushed back onto it, and finds what its neighbour finds.
  if (i0 > a.I - I) i0 = a.I - I;
  if (j0 > a.J - kTargets) j0 = a.J - kTargets;
  for (int k = lane; k < R * I * kTargets; k += kWarp) {
    const int r = k / (I * kTargets), i = k / kTargets % I, j = k % kTargets;
    coefficients[warp][r][i][j] = static_cast<T>(a.c[(r * a.I + i0 + i) * a.J + j0 + j]);
  }
  __syncwarp();
#pragma unroll 1
  for (int64_t b = blockIdx.y; b < a.batch; b += gridDim.y) {
    const Tile<T, F, R, I> tile{(b * a.I + i0) * a.D, (b * a.J + j0) * a.D, a.D,
                                coefficients[warp]};
    double total = 0;
#pragma unroll 1
    for (int64_t strip = begin; strip < end; strip += kStrip) {
      const int64_t stop = strip + kStrip < end ? strip + kStrip : end;
      T sum[I][kTargets] = {};
#pragma unroll 1
      for (int64_t d = strip + lane * Wide<T>::kCount; d < stop; d += kWarp * Wide<T>::kCount)
        tile.add_strip(a, d, sum);
      double whole[I * kTargets];
#pragma unroll
      for (int k = 0; k < I * kTargets; ++k)
        whole[k] = static_cast<double>(sum[k / kTargets][k % kTargets]);
      sum_for_lane<I * kTargets>(whole, lane);
      total += whole[0];
    }
    const int64_t i = i0 + lane / kTargets, j = j0 + lane % kTargets;
    if (lane < I * kTargets) s.partial[((blockIdx.z * a.batch + b) * a.I + i) * a.J + j] = total;
  }
}

__device__ __forceinline__ double power(double magnitude, double p) {
  return p == 2 ? magnitude * magnitude : p == 1 ? magnitude : pow(magnitude, p);
}

// A warp a pair of rows; blocks: (pairs, samples, splits).
template <class T, class F>
__global__ void __launch_bounds__(kThreadsOfTiles) cost_pairs(const __grid_constant__ Cost s) {
  const fs_cost_args& a = s.a;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t pair = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  const int64_t i = pair / a.J, j = pair % a.J, begin = blockIdx.z * s.part;
  const int64_t end = begin + s.part < a.D ? begin + s.part : a.D;
  if (i >= a.I) return;
  const Band band = band_of(a, i);
  if (j < band.low || j >= band.high) return;
  T c[FS_MAX_TERMS] = {};
#pragma unroll
  for (int r = 0; r < FS_MAX_TERMS; ++r) {
    if (r < a.terms) c[r] = static_cast<T>(a.c[(r * a.I + i) * a.J + j]);
  }
#pragma unroll 1
  for (int64_t b = blockIdx.y; b < a.batch; b += gridDim.y) {
    const F* x = static_cast<const F*>(a.X) + (b * a.J + j) * a.D;
    const int64_t u = (b * a.I + i) * a.D;
    double total = 0;
#pragma unroll 1
    for (int64_t d = begin + lane; d < end; d += kWarp) {
      T gap = -wide<T>(x[d]);
#pragma unroll
      for (int r = 0; r < FS_MAX_TERMS; ++r) {
        if (r < a.terms)
          gap = multiply_add(wide<T>(static_cast<const F*>(a.U[r])[u + d]), c[r], gap);
      }
      total = total + power(fabs(static_cast<double>(gap)), a.p);
    }
#pragma unroll
    for (int half = kWarp / 2; half > 0; half /= 2)
      total = total + __shfl_xor_sync(0xFFFFFFFFu, total, half);
    if (lane == 0) s.partial[((blockIdx.z * a.batch + b) * a.I + i) * a.J + j] = total;
  }
}

// C = the splits' sums, in order, over D; +infinity outside the band.
__global__ void __launch_bounds__(kThreadsOfTiles)
    cost_sum(const __grid_constant__ Cost s, int splits) {
  const fs_cost_args& a = s.a;
  const int64_t all = a.batch * a.I * a.J;
  for (int64_t k = int64_t{blockIdx.x} * kThreadsOfTiles + threadIdx.x; k < all;
       k += int64_t{gridDim.x} * kThreadsOfTiles) {
    const Band band = band_of(a, k / a.J % a.I);
    const bool inside = k % a.J >= band.low && k % a.J < band.high;
    double sum = 0;
    for (int split = 0; inside && split < splits; ++split) sum += s.partial[split * all + k];
    static_cast<double*>(a.out)[k] = inside ? sum / static_cast<double>(a.D) : __builtin_inf();
  }
}

template <class T, class F>
bool goes_by_tiles(const fs_cost_args& a) {
  constexpr int kBytes = static_cast<int>(sizeof(F)) * Wide<T>::kCount;
  bool whole = a.D % Wide<T>::kCount == 0 && is_aligned(a.X, kBytes);
  for (int r = 0; r < a.terms; ++r) whole = whole && is_aligned(a.U[r], kBytes);
  return whole && a.p == 2 && a.I >= sources_of(a.terms, sizeof(T) == 8) && a.J >= kTargets;
}

Cost cost_of(const fs_cost_args& a) {
  const int64_t sources = kWarpsI * sources_of(a.terms, a.dtype == FS_F64);
  const int64_t targets = kWarpsJ * kTargets;
  Cost s = {a, 0, (a.I + sources - 1) / sources, (a.J + targets - 1) / targets, nullptr};
  const int64_t strips = a.D == 0 ? 1 : (a.D - 1) / kStrip + 1;
  const int64_t splits = splits_of(a.batch * s.tiles_i * s.tiles_j, strips);
  s.part = ((strips - 1) / splits + 1) * kStrip;
  return s;
}

int splits_in(const Cost& s) { return s.a.D == 0 ? 1 : static_cast<int>((s.a.D - 1) / s.part + 1); }

template <class T, class F>
void launch_of(const Cost& s, const Call& call) {
  const fs_cost_args& a = s.a;
  const bool tiles = goes_by_tiles<T, F>(a);
  const int64_t blocks = tiles ? s.tiles_i * s.tiles_j : (a.I * a.J - 1) / kWarps + 1;
  if (blocks > INT32_MAX)
    fail(FS_E_UNSUPPORTED, "fs_cost_matrix: %lld x %lld pairs are more than a launch takes",
         static_cast<long long>(a.I), static_cast<long long>(a.J));
  const int64_t rows = a.batch < caps().rows ? a.batch : caps().rows;
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(rows),
                  static_cast<unsigned>(splits_in(s)));
  if (!tiles) return call.launch("cost_pairs", cost_pairs<T, F>, grid, kThreadsOfTiles, s);
  switch (a.terms) {
    case 1: return call.launch("cost_tiles", cost_tiles<T, F, 1>, grid, kThreadsOfTiles, s);
    case 2: return call.launch("cost_tiles", cost_tiles<T, F, 2>, grid, kThreadsOfTiles, s);
    case 3: return call.launch("cost_tiles", cost_tiles<T, F, 3>, grid, kThreadsOfTiles, s);
    default: return call.launch("cost_tiles", cost_tiles<T, F, 4>, grid, kThreadsOfTiles, s);
  }
}

}  // namespace

int64_t cuda_cost_workspace(const fs_cost_args& a) {
  return splits_in(cost_of(a)) * a.batch * a.I * a.J * int64_t{sizeof(double)};
}

void cuda_cost_matrix(const fs_cost_args& a) {
  const Call call("fs_cost_matrix", a.gpu, a.stream);
  if (a.batch == 0 || a.I == 0 || a.J == 0) return;
  Cost s = cost_of(a);
  s.partial = static_cast<double*>(a.workspace);
  switch (a.dtype) {
    case FS_F32: launch_of<float, float>(s, call); break;
    case FS_F64: launch_of<double, double>(s, call); break;
    case FS_F16: launch_of<float, Half>(s, call); break;
    default: launch_of<float, Bfloat>(s, call);
  }
  const int64_t all = a.batch * a.I * a.J, blocks = (all - 1) / kThreadsOfTiles + 1;
  const dim3 grid(static_cast<unsigned>(blocks < caps().blocks ? blocks : caps().blocks));
  call.launch("cost_sum", cost_sum, grid, kThreadsOfTiles, s, splits_in(s));
}

}  // namespace fs
