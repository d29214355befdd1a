// Which instruction set runs, and on how many threads.

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif
#include <pthread.h>

#include "core/device.h"
#include "core/dtype.h"
#include "core/error.h"
#include "core/sample.h"
#include "kernels.h"

namespace fs {
namespace {

constexpr int64_t kOneThreadBelow =
    64 * 1024;  // elements; waking a thread costs as much as they do

// The best table this machine runs, or the one FASTSAMPLE_ISA names if it runs it: the bits of
// fs_step are the same.
const CpuKernels& choose() {
  const CpuKernels* tables[3] = {&baseline::kernels};
  int count = 1;
#ifdef FS_X86
  const bool fma = __builtin_cpu_supports("fma");
  if (fma && __builtin_cpu_supports("avx2")) tables[count++] = &avx2::kernels;
  if (fma && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    tables[count++] = &avx512::kernels;
#endif
  const char* wish = std::getenv("FASTSAMPLE_ISA");
  for (int k = 0; wish && k < count; ++k) {
    if (std::strcmp(wish, tables[k]->isa) == 0) return *tables[k];
  }
  return *tables[count - 1];
}

const CpuKernels& kernels() {
  static const CpuKernels& chosen = choose();
  return chosen;
}

// libgomp's threads do not survive a fork: a child that starts a parallel region waits for them for
// ever.
bool forked = false;
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { forked = true; });

int threads_for([[maybe_unused]] int64_t elements, [[maybe_unused]] int wanted) {
#ifdef _OPENMP
  if (!forked && elements >= kOneThreadBelow && !omp_in_parallel()) {
    const int most = std::max(omp_get_max_threads(), omp_get_num_procs());
    return wanted <= 0 ? omp_get_max_threads() : std::min(wanted, most);
  }
#endif
  return 1;
}

// Calls range(first, last) over [0, items), cut evenly among threads.
template <class Range>
void share(int64_t items, int threads, const Range& range) {
  if (threads > items) threads = static_cast<int>(items);
  if (threads <= 1) return range(int64_t{0}, items);
#ifdef _OPENMP
#pragma omp parallel num_threads(threads)
  {
    const int64_t me = omp_get_thread_num(), all = omp_get_num_threads();
    range(items / all * me + items % all * me / all,
          items / all * (me + 1) + items % all * (me + 1) / all);
  }
#endif
}

// The same over samples of `each` items: visit(sample, low, high).
template <class Visit>
void share_samples(int64_t batch, int64_t each, int threads, const Visit& visit) {
  share(batch * each, threads,
        [&](int64_t first, int64_t last) { for_samples(first, last, each, visit); });
}

}  // namespace

const char* cpu_isa() { return kernels().isa; }

bool cpu_has_openmp() {
#ifdef _OPENMP
  return true;
#else
  return false;
#endif
}

int cpu_threads() { return threads_for(kOneThreadBelow, 0); }

double cpu_energy(const void* data, int dtype, int64_t n) {
  return kernels().energy(data, dtype, n);
}

namespace {

// Nothing differs between the samples: all at one sound row that draws no noise, with the same
// scales. Their batch is then one long sample, looked up once (50 x 32: 3.1 -> .6 us).
bool is_one_sample(const fs_step_args& a) {
  if (a.batch < 2 || a.groups > 1 || a.place || a.f_index || a.weights || a.bound || a.mask ||
      a.t_out || a.pool != a.batch || a.outputs < a.batch)
    return false;
  const char* scale = static_cast<const char*>(a.scale);
  const int64_t row = row_of(a, 0, 0), bytes = scale ? a.K * dtype_size(a.state_dtype) : 0;
  for (int64_t b = 1; b < a.batch; ++b) {
    if (row_of(a, b, 0) != row) return false;
    if (bytes > 0 && std::memcmp(scale, scale + b * bytes, static_cast<size_t>(bytes)) != 0)
      return false;
  }
  const Dims d = dims_of(a);
  if (check_row(a, d, 0, row) != 0) return false;
  const Structure s = structure_of(a.table_i + row * d.ints());
  return needs_of(d, s, a.preview != nullptr, false).noises == 0;
}

fs_step_args as_one_sample(const fs_step_args& a) {
  fs_step_args one = a;
  one.one_row = 1, one.row_number = static_cast<int32_t>(row_of(a, 0, 0));
  one.elements = a.batch * a.elements, one.batch = one.pool = one.outputs = 1;
  return one;
}

// Writes FS_NOT_FINITE, with the row of the first group that holds such an x', where a sample's
// word shows no fault yet.
template <class T>
void mark_not_finite(const fs_step_args& a) {
  const T* pool = static_cast<const T*>(a.x_out ? a.x_out : a.x);
  for (int64_t b = 0; b < a.batch; ++b) {
    if ((a.status[b] & 0xFF) != 0) continue;
    const T* x = pool + place_of(a, b) * a.elements;
    int64_t guilty = a.groups;
    for (int64_t e = 0; e < a.elements; ++e) {
      if (!(x[e] - x[e] == 0)) guilty = std::min(guilty, a.groups > 1 ? e / a.inner % a.groups : 0);
    }
    if (guilty < a.groups) a.status[b] = status_word(FS_NOT_FINITE, row_of(a, b, guilty));
  }
}

void cpu_step(const fs_step_args& args) {
  if (args.batch == 0) return;
  const CpuKernels& table = kernels();
  const auto finite = [&](const fs_step_args& a) {
    std::atomic<bool> all{true};
    share(a.batch * blocks_of(a.elements), threads_for(a.batch * a.elements, a.threads),
          [&](int64_t first, int64_t last) {
            if (!table.step(a, first, last)) all.store(false, std::memory_order_relaxed);
          });
    return all.load(std::memory_order_relaxed);
  };
  if ((is_one_sample(args) ? finite(as_one_sample(args)) : finite(args)) || !args.status) return;
  args.state_dtype == FS_F64 ? mark_not_finite<double>(args) : mark_not_finite<float>(args);
}

void cpu_noise(const fs_noise_args& args) {
  if (args.elements == 0) return;
  share_samples(args.batch, blocks_of(args.elements),
                threads_for(args.batch * args.elements, args.threads),
                [&, noise = kernels().noise](int64_t b, int64_t low, int64_t high) {
                  noise(args, b, low, high);
                });
}

// Sums of chunks, halved over the next power of two: lower half + upper half, absent chunks being
// zeros.
void halve(double* sums, int64_t chunks, int64_t width) {
  int64_t half = 1;
  while (half < chunks) half *= 2;
  for (half /= 2; half > 0; half /= 2) {
    for (int64_t c = 0; c < half; ++c) {
      const bool there = c + half < chunks;
      for (int64_t k = 0; k < width; ++k)
        sums[c * width + k] = sums[c * width + k] + (there ? sums[(c + half) * width + k] : 0.0);
    }
    chunks = half;
  }
}

double largest(const double* values, int64_t count, int64_t stride) {
  double most = 0;
  for (int64_t k = 0; k < count; ++k) {
    const double value = values[k * stride];
    if (value > most || value != value) most = value;
  }
  return most;
}

void cpu_moments(const fs_moments_args& args) {
  const CpuKernels& table = kernels();
  const int64_t chunks = (args.elements + kMomentChunk - 1) / kMomentChunk,
                pairs = args.dots ? int64_t{args.P} * args.Q : 0, P = args.max_abs ? args.P : 0;
  std::vector<double> sums(static_cast<size_t>(args.batch * chunks * pairs)),
      most(static_cast<size_t>(args.batch * chunks * P));
  const auto sums_of = [&](int64_t b) { return sums.data() + b * chunks * pairs; };
  const auto most_of = [&](int64_t b) { return most.data() + b * chunks * P; };
  share_samples(args.batch, chunks, threads_for(args.batch * args.elements, args.threads),
                [&](int64_t b, int64_t low, int64_t high) {
                  table.moments(args, b, low, high, sums_of(b), most_of(b));
                });
  for (int64_t b = 0; b < args.batch; ++b) {
    halve(sums_of(b), chunks, pairs);
    for (int64_t k = 0; k < pairs; ++k) args.dots[b * pairs + k] = chunks > 0 ? sums_of(b)[k] : 0;
    for (int64_t p = 0; p < P; ++p) args.max_abs[b * P + p] = largest(most_of(b) + p, chunks, P);
  }
}

// Work of source i: the width of its band, and 1 for itself.
int64_t cost_of_source(const fs_cost_args& args, int64_t i) {
  const auto [low, high] = band_of(args, i);
  return std::max<int64_t>(high - low, 0) + 1;
}

// Sources are shared out by their work: in a triangular band the first have most of it.
void cpu_cost_matrix(const fs_cost_args& args) {
  const CpuKernels& table = kernels();
  std::vector<int64_t> before(static_cast<size_t>(args.I + 1), 0);
  for (int64_t i = 0; i < args.I; ++i) before[i + 1] = before[i] + cost_of_source(args, i);
  const auto source_at = [&](int64_t work) {
    return std::lower_bound(before.begin(), before.end(), work) - before.begin();
  };
  share_samples(args.batch, before.back(),
                threads_for(args.batch * args.I * args.J * args.D, args.threads),
                [&](int64_t b, int64_t low, int64_t high) {
                  table.cost_matrix(args, b, source_at(low), source_at(high));
                });
}

void cpu_cost_gather(const fs_cost_args& args) {
  const CpuKernels& table = kernels();
  const int64_t lists =
      args.i_star_batch_stride == 0 ? std::min<int64_t>(args.batch, 1) : args.batch;
  for (int64_t k = 0; k < lists * args.J; ++k) {
    if (args.i_star[k] < -1 || args.i_star[k] >= args.I)
      fail(FS_E_ARG, "fs_cost_gather: i_star[%lld] is %d; -1 (none) to %lld is accepted",
           static_cast<long long>(k), args.i_star[k], static_cast<long long>(args.I - 1));
  }
  share_samples(
      args.batch, args.J, threads_for(args.batch * args.J * args.D, args.threads),
      [&](int64_t b, int64_t low, int64_t high) { table.cost_gather(args, b, low, high); });
}

template <class Args>
int64_t no_workspace(const Args&) {
  return 0;
}

}  // namespace

const Device cpu_device = {cpu_step,        cpu_noise,    cpu_moments,    no_workspace,
                           cpu_cost_matrix, no_workspace, cpu_cost_gather};

}  // namespace fs
