// fs_step for rows that the host does not know: each sample, or each group of its elements, at a
// row of the row vector, and whatever step_uniform does not take.

#include "launch.h"
#include "step.h"
#include "step_any.h"

namespace fs {
namespace {

// While a launch with groups runs, a word kOpen | group << 8 names the first group with an x' that
// is not finite; `settle` makes it a fs_sample_status.
constexpr int32_t kOpen = 0x80;

// The status of a sample, by all threads of its block: their groups are many.
__device__ __forceinline__ int32_t check_groups(const fs_step_args& a, const Dims& d, int64_t b) {
  __shared__ int guilty;
  int faults = 0, mine = static_cast<int>(kMostGroups);
  if (threadIdx.x == 0) guilty = mine;
  __syncthreads();
  for (int64_t g = threadIdx.x; g < a.groups; g += blockDim.x) {
    const int fault = check_row(a, d, b, row_of(a, b, g));
    if (fault != 0 && faults == 0) mine = static_cast<int>(g);
    faults |= fault;
  }
  if (faults != 0) atomicMin(&guilty, mine);
  const int64_t place = place_of(a, b);
  int all = place < 0 || place >= a.pool ? FS_BAD_PLACE : 0;
  if (__syncthreads_or(faults & FS_BAD_ROW)) all |= FS_BAD_ROW;
  if (__syncthreads_or(faults & FS_BAD_BRANCH)) all |= FS_BAD_BRANCH;
  const int first = guilty;
  __syncthreads();  // before the next sample's word is begun
  return all ? status_word(all, row_of(a, b, first < a.groups ? first : 0)) : 0;
}

template <class T>
__device__ __forceinline__ void write_times(const fs_step_args& a, const Dims& d, int64_t b) {
  for (int64_t k = threadIdx.x; k < a.groups * d.E; k += blockDim.x) {
    const int64_t row = row_of(a, b, k / d.E), at = b * a.groups * d.E + k;
    const T t = static_cast<const T*>(a.table_f)[row * d.floats() + d.t() + k % d.E];
    if (a.t_dtype == FS_F64) static_cast<double*>(a.t_out)[at] = static_cast<double>(t);
    else static_cast<float*>(a.t_out)[at] = static_cast<float>(t);
  }
}

__device__ __forceinline__ void open_status(int32_t* status, int64_t group) {
  const int32_t word = kOpen | static_cast<int32_t>(group) << 8;
  int32_t seen = *status;
  while ((seen & 0xFF) == 0 ||
         ((seen & 0xFF) == kOpen && static_cast<uint32_t>(word) < static_cast<uint32_t>(seen))) {
    const int32_t before = atomicCAS(status, seen, word);
    if (before == seen) return;
    seen = before;
  }
}

// Elements of one sample at one row.
template <class T, bool Whole>
__device__ __forceinline__ void run_sample(const fs_step_args& a, const Dims& d, int64_t b) {
  const int64_t row = row_of(a, b, 0), stride = int64_t{gridDim.x} * blockDim.x * kQuad;
  const Job<T> job = job_of<T>(a, d, b, row);
  bool finite = true;
#pragma unroll 1
  for (int64_t e = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * kQuad; e < a.elements;
       e += stride) {
    const int64_t left = a.elements - e;
    finite &= run_quad<T, Whole>(a, d, job, e, left < kQuad ? static_cast<int>(left) : kQuad);
  }
  // Who sees it writes the same word.
  if (!finite && a.status && (a.status[b] & 0xFF) == 0)
    a.status[b] = status_word(FS_NOT_FINITE, row);
}

// Elements of one sample whose groups have rows of their own. Whole: a quad lies in one group;
// else its elements go one by one.
template <class T, bool Whole>
__device__ __forceinline__ void run_groups(const fs_step_args& a, const Dims& d, int64_t b) {
  constexpr int kWidth = Whole ? kQuad : 1;
  const int64_t stride = int64_t{gridDim.x} * blockDim.x * kWidth;
#pragma unroll 1
  for (int64_t e = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * kWidth; e < a.elements;
       e += stride) {
    const int64_t group = e / a.inner % a.groups;
    const Job<T> job = job_of<T>(a, d, b, row_of(a, b, group));
    const bool finite = run_quad<T, Whole>(a, d, job, e, kWidth);
    if (!finite && a.status) open_status(a.status + b, group);
  }
}

// Blocks of a sample along x, samples along y.
template <class T, bool Whole, bool Grouped>
__global__ void __launch_bounds__(kMostThreads, sizeof(T) == 4 ? 3 : 2)
    step_any(const __grid_constant__ fs_step_args a) {
  const Dims d = dims_of(a);
#pragma unroll 1
  for (int64_t b = blockIdx.y; b < a.batch; b += gridDim.y) {
    int32_t bad;
    if constexpr (Grouped) bad = check_groups(a, d, b);
    else bad = check_sample(a, d, b);
    const bool first = blockIdx.x == 0;
    if (bad) {
      if (first && threadIdx.x == 0 && a.status && (a.status[b] & 0xFF) == 0) a.status[b] = bad;
      continue;
    }
    if (first && a.t_out) write_times<T>(a, d, b);
    if constexpr (Grouped) run_groups<T, Whole>(a, d, b);
    else run_sample<T, Whole>(a, d, b);
  }
}

__global__ void __launch_bounds__(kMostThreads) settle(const __grid_constant__ fs_step_args a) {
  for (int64_t b = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; b < a.batch;
       b += int64_t{gridDim.x} * blockDim.x) {
    const int32_t word = a.status[b];
    if ((word & 0xFF) != kOpen) continue;
    a.status[b] = status_word(FS_NOT_FINITE, row_of(a, b, static_cast<uint32_t>(word) >> 8));
  }
}

template <class T, bool Grouped>
void launch(const fs_step_args& a, const Call& call, const Cut& cut, bool whole) {
  const char* name = Grouped ? whole ? "step_any(groups,whole)" : "step_any(groups)"
                     : whole ? "step_any(whole)"
                             : "step_any";
  call.launch(name, whole ? step_any<T, true, Grouped> : step_any<T, false, Grouped>, cut.grid,
              cut.threads, a);
}

}  // namespace

void launch_step_any(const fs_step_args& a, const Call& call, bool whole) {
  const Cut cut = cut_of(a.batch, a.elements);
  const bool grouped = a.groups > 1;
  if (grouped && a.groups > kMostGroups)
    fail(FS_E_UNSUPPORTED, "fs_step: groups is %lld; at most %lld are accepted on CUDA",
         static_cast<long long>(a.groups), static_cast<long long>(kMostGroups));
  if (a.state_dtype == FS_F64) {
    if (grouped) launch<double, true>(a, call, cut, whole);
    else launch<double, false>(a, call, cut, whole);
  } else {
    if (grouped) launch<float, true>(a, call, cut, whole);
    else launch<float, false>(a, call, cut, whole);
  }
  if (grouped && a.status) {
    const Cut samples = cut_of(1, a.batch * kQuad);
    call.launch("settle", settle, samples.grid, samples.threads, a);
  }
}

}  // namespace fs
