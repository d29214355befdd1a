// fs_moments on a GPU: the tree of additions of fastsample.h, to the bit. Compile with
// --fmad=false.
//
// Four threads have the 16 lanes of a chunk, four side by side each, so that a load is of a quad:
// each walks the 64 steps of its lanes with all their sums in registers, then the lanes are halved,
// by exchanges and at last within a thread. A block has 16 chunks that lie a sixteenth of the
// tree's width apart, so that halving them too is the top of the tree, and one number a pair is
// left of them; a second launch halves those. A sample of up to 16 chunks needs no second one.

#include "device.h"
#include "launch.h"
#include "quad.h"
#include "rules.h"

namespace fs {
namespace {

constexpr int kLanes = 16, kSteps = 64;  // of a chunk
constexpr int kOwners = kLanes / kQuad;  // threads of a chunk
constexpr int kRun = 16;                 // chunks of a block
constexpr int kThreadsOfRun = kRun * kOwners;
constexpr int kHalvers = 128;  // threads that halve a pair's sums
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

// The 16 lanes of a chunk added; each of its threads has the sum.
__device__ __forceinline__ double halved(Quad<double> v) {
#pragma unroll
  for (int half = kOwners / 2; half > 0; half /= 2) {
#pragma unroll
    for (double& sum : v.at) sum = sum + __shfl_xor_sync(0xFFFFFFFFu, sum, half);
  }
  return (v.at[0] + v.at[2]) + (v.at[1] + v.at[3]);
}

__device__ __forceinline__ double largest(double v) {
#pragma unroll
  for (int half = kOwners / 2; half > 0; half /= 2)
    v = larger(v, __shfl_xor_sync(0xFFFFFFFFu, v, half));
  return v;
}

// Numbers of the sample that begins at `base`, from its element e on; 0 behind its last.
template <class F, bool Whole>
__device__ __forceinline__ Quad<double> numbers(const void* data, int64_t base, int64_t e,
                                                int64_t elements) {
  if (e >= elements) return {};
  const int n = elements - e < kQuad ? static_cast<int>(elements - e) : kQuad;
  return widened<double>(load<Whole>(static_cast<const F*>(data) + base + e, n));
}

// The sums of four lanes of a chunk over their steps, with Take tensors b.
template <class F, int P, int Take, bool Whole>
struct Lanes {
  Quad<double> sum[P][Take];
  double most[P];

  __device__ __forceinline__ void walk(const fs_moments_args& a, int64_t base, int64_t e, int q0) {
#pragma unroll
    for (int p = 0; p < P; ++p) most[p] = 0;
#pragma unroll 1
    for (int step = 0; step < kSteps; ++step, e += kLanes) {
      Quad<double> x[P], y[Take];
#pragma unroll
      for (int p = 0; p < P; ++p) x[p] = numbers<F, Whole>(a.a[p], base, e, a.elements);
#pragma unroll
      for (int q = 0; q < Take; ++q)
        y[q] = q0 + q < a.Q ? numbers<F, Whole>(a.b[q0 + q], base, e, a.elements) : Quad<double>{};
#pragma unroll
      for (int p = 0; p < P; ++p) {
#pragma unroll
        for (int k = 0; k < kQuad; ++k) {
          most[p] = larger(most[p], fabs(x[p].at[k]));
#pragma unroll
          for (int q = 0; q < Take; ++q) {
            double& own = sum[p][q].at[k];
            own =
                step == 0 ? x[p].at[k] * y[q].at[k] : plus_product<F>(own, x[p].at[k], y[q].at[k]);
          }
        }
      }
    }
  }
};

// Blocks: (runs x takes, samples). P is fixed, so that the sums live in registers.
template <class F, int P, bool Whole>
__global__ void __launch_bounds__(kThreadsOfRun, 1) moments(const __grid_constant__ Moments m) {
  constexpr int kTake = take_of(P);
  __shared__ double sums[P * kTake][kRun], most[P][kRun];
  const fs_moments_args& a = m.a;
  const int owner = static_cast<int>(threadIdx.x) % kOwners;
  const int line = static_cast<int>(threadIdx.x) / kOwners;
  const int q0 = static_cast<int>(blockIdx.x % m.takes) * kTake;
  const int64_t run = blockIdx.x / m.takes, chunk = run + line * m.runs;
#pragma unroll 1
  for (int64_t b = blockIdx.y; b < a.batch; b += gridDim.y) {
    Lanes<F, P, kTake, Whole> mine;
    mine.walk(a, b * a.elements, chunk * kChunk + owner * kQuad, q0);
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

template <class F, int P>
void launch_of(const Moments& m, const Call& call, dim3 grid) {
  constexpr int kBytes = sizeof(F) < sizeof(float) ? kQuadBytes / 2 : kQuadBytes;
  bool whole = m.a.elements % kQuad == 0;
  for (int p = 0; p < P; ++p) whole = whole && is_aligned(m.a.a[p], kBytes);
  for (int q = 0; q < m.a.Q; ++q) whole = whole && is_aligned(m.a.b[q], kBytes);
  call.launch(whole ? "moments(whole)" : "moments",
              whole ? moments<F, P, true> : moments<F, P, false>, grid, kThreadsOfRun, m);
}

template <class F>
void launch_of(const Moments& m, const Call& call, dim3 grid) {
  switch (m.a.P) {
    case 1: return launch_of<F, 1>(m, call, grid);
    case 2: return launch_of<F, 2>(m, call, grid);
    case 3: return launch_of<F, 3>(m, call, grid);
    case 4: return launch_of<F, 4>(m, call, grid);
    default: return launch_of<F, 5>(m, call, grid);
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
  if (dots) m.takes = (a.Q - 1) / take_of(a.P) + 1;
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
