// fs_moments on a GPU: the tree of additions of fastsample.h, to the bit. Compile with
// --fmad=false.
//
// Sixteen threads are the lanes of a chunk: each walks the 64 steps of its lane with all its sums
// in registers, then the lanes are halved by exchanges. A block has 16 chunks that lie a sixteenth
// of the tree's width apart, so that halving them too is the top of the tree, and one number a pair
// is left of them; a second launch halves those. A sample of up to 16 chunks needs no second one.

#include "device.h"
#include "launch.h"
#include "quad.h"
#include "rules.h"

namespace fs {
namespace {

constexpr int kLanes = 16, kSteps = 64;                  // of a chunk
constexpr int kRun = 16, kThreadsOfRun = kRun * kLanes;  // chunks of a block
constexpr int kTake = 4;                                 // tensors b that a block multiplies with
constexpr int kHalvers = 128;                            // threads that halve a pair's sums
constexpr int64_t kChunk = kLanes * kSteps;

struct Moments {
  fs_moments_args a;
  int64_t chunks, runs;  // runs: blocks of a sample, a power of two
  int width, takes;      // width: chunks of a run, a power of two up to kRun
  double *sums, *most;   // [B, P, Q, runs], [B, P, runs]; NULL = not wanted
};

inline int64_t chunks_of(const fs_moments_args& a) {
  return a.elements == 0 ? 0 : (a.elements - 1) / kChunk + 1;
}

inline int64_t runs_of(const fs_moments_args& a) {
  int64_t width = 1;
  while (width < chunks_of(a)) width *= 2;
  return width <= kRun ? 1 : width / kRun;
}

__device__ __forceinline__ double larger(double a, double b) { return a != a || a > b ? a : b; }

// sum + x y. Products of float32 and shorter numbers are exact in float64: fused or not, the bits
// are the same.
template <class F>
__device__ __forceinline__ double plus_product(double sum, double x, double y) {
  if constexpr (sizeof(F) < sizeof(double)) return fma(x, y, sum);
  else return sum + x * y;
}

// The 16 lanes of a chunk added; each lane has the sum.
__device__ __forceinline__ double halved(double v) {
#pragma unroll
  for (int half = kLanes / 2; half > 0; half /= 2) v = v + __shfl_xor_sync(0xFFFFFFFFu, v, half);
  return v;
}

__device__ __forceinline__ double largest(double v) {
#pragma unroll
  for (int half = kLanes / 2; half > 0; half /= 2)
    v = larger(v, __shfl_xor_sync(0xFFFFFFFFu, v, half));
  return v;
}

template <class F>
__device__ __forceinline__ double number(const void* data, int64_t at) {
  return wide<double>(static_cast<const F*>(data)[at]);
}

// The sums of one lane of a chunk over its steps.
template <class F, int P>
struct Lane {
  double sum[P][kTake], most[P];

  __device__ __forceinline__ void walk(const fs_moments_args& a, int64_t base, int64_t e, int q0) {
#pragma unroll
    for (int p = 0; p < P; ++p) most[p] = 0;
#pragma unroll 4
    for (int step = 0; step < kSteps; ++step, e += kLanes) {
      double x[P], y[kTake];
#pragma unroll
      for (int p = 0; p < P; ++p) x[p] = e < a.elements ? number<F>(a.a[p], base + e) : 0;
#pragma unroll
      for (int q = 0; q < kTake; ++q)
        y[q] = e < a.elements && q0 + q < a.Q ? number<F>(a.b[q0 + q], base + e) : 0;
#pragma unroll
      for (int p = 0; p < P; ++p) {
        most[p] = larger(most[p], fabs(x[p]));
#pragma unroll
        for (int q = 0; q < kTake; ++q)
          sum[p][q] = step == 0 ? x[p] * y[q] : plus_product<F>(sum[p][q], x[p], y[q]);
      }
    }
  }
};

// Blocks: (runs x takes, samples). P is fixed, so that the sums live in registers.
template <class F, int P>
__global__ void __launch_bounds__(kThreadsOfRun, 1) moments(const __grid_constant__ Moments m) {
  __shared__ double sums[P * kTake][kRun], most[P][kRun];
  const fs_moments_args& a = m.a;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int line = static_cast<int>(threadIdx.x) / kLanes;
  const int q0 = static_cast<int>(blockIdx.x % m.takes) * kTake;
  const int64_t run = blockIdx.x / m.takes, chunk = run + line * m.runs;
#pragma unroll 1
  for (int64_t b = blockIdx.y; b < a.batch; b += gridDim.y) {
    Lane<F, P> mine;
    mine.walk(a, b * a.elements, chunk * kChunk + lane, q0);
#pragma unroll
    for (int p = 0; p < P; ++p) {
#pragma unroll
      for (int q = 0; q < kTake; ++q) sums[p * kTake + q][line] = halved(mine.sum[p][q]);
      most[p][line] = largest(mine.most[p]);
    }
    __syncthreads();
    const int k = static_cast<int>(threadIdx.x), p = k / kTake, q = q0 + k % kTake;
    if (p < P) {
      for (int half = m.width / 2; half > 0; half /= 2) {
        for (int c = 0; c < half; ++c) {
          sums[k][c] = sums[k][c] + sums[k][c + half];
          if (q == 0) most[p][c] = larger(most[p][c], most[p][c + half]);
        }
      }
      if (m.sums && q < a.Q) m.sums[((b * P + p) * a.Q + q) * m.runs + run] = sums[k][0];
      if (m.most && q == 0) m.most[(b * P + p) * m.runs + run] = most[p][0];
    }
    __syncthreads();  // before the next sample's sums are put there
  }
}

// Halves `width` numbers of each of `rows` rows, a block a row; `max`: takes the largest instead.
template <bool Max>
__global__ void __launch_bounds__(kHalvers)
    halve(double* from, int64_t rows, int64_t width, double* to) {
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    double* v = from + row * width;
    for (int64_t half = width / 2; half > 0; half /= 2) {
      for (int64_t k = threadIdx.x; k < half; k += kHalvers)
        v[k] = Max ? larger(v[k], v[k + half]) : v[k] + v[k + half];
      __syncthreads();
    }
    if (threadIdx.x == 0) to[row] = v[0];
  }
}

__global__ void __launch_bounds__(kHalvers) zeros(double* out, int64_t count) {
  for (int64_t k = int64_t{blockIdx.x} * kHalvers + threadIdx.x; k < count;
       k += int64_t{gridDim.x} * kHalvers)
    out[k] = 0;
}

dim3 rows_grid(int64_t rows) {
  return dim3(static_cast<unsigned>(rows < caps().blocks ? rows : caps().blocks));
}

template <class F>
void launch_of(const Moments& m, const Call& call, dim3 grid) {
  switch (m.a.P) {
    case 1: return call.launch("moments", moments<F, 1>, grid, kThreadsOfRun, m);
    case 2: return call.launch("moments", moments<F, 2>, grid, kThreadsOfRun, m);
    case 3: return call.launch("moments", moments<F, 3>, grid, kThreadsOfRun, m);
    case 4: return call.launch("moments", moments<F, 4>, grid, kThreadsOfRun, m);
    default: return call.launch("moments", moments<F, 5>, grid, kThreadsOfRun, m);
  }
}

void launch(const Moments& m, const Call& call) {
  const int64_t rows = m.a.batch < caps().rows ? m.a.batch : caps().rows, blocks = m.runs * m.takes;
  if (blocks > INT32_MAX)
    fail(FS_E_UNSUPPORTED, "fs_moments: %lld elements are more than a launch takes",
         static_cast<long long>(m.a.elements));
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(rows));
  switch (m.a.dtype) {
    case FS_F32: return launch_of<float>(m, call, grid);
    case FS_F64: return launch_of<double>(m, call, grid);
    case FS_F16: return launch_of<Half>(m, call, grid);
    default: return launch_of<Bfloat>(m, call, grid);
  }
}

}  // namespace

int64_t cuda_moments_workspace(const fs_moments_args& a) {
  const int64_t runs = runs_of(a);
  return runs == 1 ? 0 : a.batch * a.P * (a.Q + 1) * runs * int64_t{sizeof(double)};
}

void cuda_moments(const fs_moments_args& a) {
  const Call call("fs_moments", a.gpu, a.stream);
  const int64_t peaks = a.batch * a.P, pairs = peaks * a.Q;
  double* const dots = pairs > 0 ? a.dots : nullptr;
  if (a.batch == 0 || (!dots && !a.max_abs)) return;
  if (a.elements == 0) {
    if (dots) call.launch("zeros", zeros, rows_grid(pairs), kHalvers, dots, pairs);
    if (a.max_abs) call.launch("zeros", zeros, rows_grid(peaks), kHalvers, a.max_abs, peaks);
    return;
  }
  Moments m{a, chunks_of(a), runs_of(a), 1, 1, dots, a.max_abs};
  while (m.width < kRun && m.width < m.chunks) m.width *= 2;
  if (dots) m.takes = (a.Q - 1) / kTake + 1;
  if (m.runs == 1) return launch(m, call);
  double* const room = static_cast<double*>(a.workspace);
  if (dots) m.sums = room;
  if (a.max_abs) m.most = room + pairs * m.runs;
  launch(m, call);
  if (dots)
    call.launch("halve", halve<false>, rows_grid(pairs), kHalvers, room, pairs, m.runs, dots);
  if (a.max_abs)
    call.launch("halve(max)", halve<true>, rows_grid(peaks), kHalvers, m.most, peaks, m.runs,
                a.max_abs);
}

}  // namespace fs
