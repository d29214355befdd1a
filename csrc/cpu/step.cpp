// x', u, v of one row (fastsample.h, fs_step), block by block. Products are rounded before sums and
// terms are added in the order written there: compile with -ffp-contract=off.

#include "core/philox.h"
#include "kernels.h"
#include "lincomb.h"
#include "row_job.h"
#include "step_fused.h"

namespace fs {
namespace {

template <class T>
struct Workspace {
  alignas(64) T f[kBlock], m[kBlock], x[kBlock], u[kBlock], v[kBlock], known[kBlock];
  alignas(64) T branch[FS_MAX_BRANCHES][kBlock];
  alignas(64) T noise[FS_MAX_NOISES][kBlock];
  const T* branch_at[FS_MAX_BRANCHES];
  const T* noise_at[FS_MAX_NOISES];
};

// Points branch_at at the block of each branch, widened where the model's dtype is not T.
template <class T>
void load_branches(const Job<T>& job, int64_t e, int64_t n, Workspace<T>& work) {
  const int dtype = job.args->model_dtype;
  for (int g = 0; g < job.dims.G; ++g) {
    if ((job.need_branch >> g & 1) == 0) continue;
    work.branch_at[g] = static_cast<const T*>(job.f[g]) + e;
    if (dtype == job.args->state_dtype) continue;
    widen(job.f[g], dtype, e, work.branch[g], n);
    work.branch_at[g] = work.branch[g];
  }
}

// Points noise_at at the block of each noise read: the caller's or Philox's, times the sample's
// noise scale.
template <class T>
void load_noises(const Job<T>& job, int64_t e, int64_t n, Workspace<T>& work) {
  const fs_step_args& a = *job.args;
  for (int l = 0; l < job.dims.L; ++l) {
    if ((job.need_noise >> l & 1) == 0) continue;
    T* __restrict__ out = work.noise[l];
    const T* given = static_cast<const T*>(a.noise[l]);
    if (given) {
      work.noise_at[l] = given + job.sample * a.elements + e;
    } else {
      alignas(64) float normal[kBlock];
      normals(job.seed, job.ids[l], e, n, normal);
      for (int64_t i = 0; i < n; ++i) out[i] = static_cast<T>(normal[i]);
      work.noise_at[l] = out;
    }
    if (!a.noise_scale) continue;
    const T scale = static_cast<const T*>(a.noise_scale)[job.sample];
    const T* __restrict__ from = work.noise_at[l];
    FS_INDEPENDENT
    for (int64_t i = 0; i < n; ++i) out[i] = from[i] * scale;
    work.noise_at[l] = out;
  }
}

template <class T>
void mix_branches(const Job<T>& job, int64_t n, Workspace<T>& work) {
  const T* terms[FS_MAX_BRANCHES];
  for (int k = 0; k < job.mixed; ++k) terms[k] = work.branch_at[job.branch_of[k]];
  lincomb(terms, job.weight, job.mixed, work.f, n);
}

template <class T>
void limit(const Job<T>& job, int64_t n, T* __restrict__ m) {
  const T high = job.has_bound ? job.bound : job.clip, low = -high;
  if (job.has_bound) {
    for (int64_t i = 0; i < n; ++i) {
      const T raised = m[i] < low ? low : m[i];
      m[i] = (raised > high ? high : raised) / high;
    }
  } else if (job.clip > 0) {
    for (int64_t i = 0; i < n; ++i) {
      const T raised = m[i] < low ? low : m[i];
      m[i] = raised > high ? high : raised;
    }
  }
}

template <class T>
void predict(const Job<T>& job, int64_t e, int64_t n, bool f_counts, Workspace<T>& work) {
  const T* terms[2] = {job.x + e, work.f};
  const T coef[2] = {job.w0p, job.q};
  lincomb(terms, coef, f_counts ? 2 : 1, work.m, n);
  limit(job, n, work.m);
}

template <class T>
void combine(const Job<T>& job, int64_t e, int64_t n, int output, const Workspace<T>& work,
             T* out) {
  const T* terms[kMaxOperands];
  for (int k = 0; k < job.operands; ++k) {
    const Operand<T>& operand = job.operand[k];
    switch (operand.kind) {
      case Kind::kMemory: terms[k] = operand.memory + e; break;
      case Kind::kM: terms[k] = work.m; break;
      case Kind::kF: terms[k] = work.f; break;
      case Kind::kBranch: terms[k] = work.branch_at[operand.number]; break;
      case Kind::kNoise: terms[k] = work.noise_at[operand.number]; break;
    }
  }
  lincomb(terms, job.coef[output], job.operands, out, n);
}

// x' += mask (t - x') with t = ky y + sum_l Cy_l n_l over the bits of known_reads.
template <class T>
void blend_known(const Job<T>& job, int64_t e, int64_t n, Workspace<T>& work) {
  const T* terms[1 + FS_MAX_NOISES];
  T coef[1 + FS_MAX_NOISES];
  int count = 0;
  for (int k = 0; k <= job.dims.L; ++k) {
    if ((job.known_reads >> k & 1) == 0) continue;
    terms[count] = k == 0 ? job.known + e : work.noise_at[k - 1];
    coef[count++] = job.known_coef[k];
  }
  lincomb(terms, coef, count, work.known, n);
  const T* __restrict__ mask = job.mask + e;
  const T* __restrict__ target = work.known;
  T* __restrict__ x = work.x;
  for (int64_t i = 0; i < n; ++i) x[i] = x[i] + mask[i] * (target[i] - x[i]);
}

template <class T>
bool all_finite(const T* __restrict__ x, int64_t n) {
  int bad = 0;
  for (int64_t i = 0; i < n; ++i) bad |= !(x[i] - x[i] == 0);
  return bad == 0;
}

// The model input of every copy, from x' while it is still in the cache.
template <class T>
void write_model_input(const Job<T>& job, const T* x, int64_t e, int64_t n) {
  const fs_step_args& a = *job.args;
  if (!a.model_input) return;
  for (int copy = 0; copy < a.copies; ++copy) {
    narrow_scaled(x, job.c, a.model_input, a.model_dtype,
                  (copy * a.batch + job.sample) * a.elements + e, n);
  }
}

template <class T>
int run_block(const Job<T>& job, int64_t e, int64_t n, Workspace<T>& work) {
  const fs_step_args& a = *job.args;
  const size_t bytes = static_cast<size_t>(n) * sizeof(T);
  load_branches(job, e, n, work);
  load_noises(job, e, n, work);
  if (job.need_f) mix_branches(job, n, work);
  if (job.need_m) predict(job, e, n, job.f_counts, work);
  if (a.preview) {
    const T* terms[2] = {job.x + e, work.m};
    const T coef[2] = {job.dx, job.dm};
    lincomb(terms, coef, 2, static_cast<T*>(a.preview) + job.sample * a.elements + e, n);
  }
  combine(job, e, n, 0, work, work.x);
  if (job.u) combine(job, e, n, 1, work, work.u);
  if (job.v) combine(job, e, n, 2, work, work.v);
  if (job.blend) blend_known(job, e, n, work);
  std::memcpy(job.x + e, work.x, bytes);
  if (job.u) std::memcpy(job.u + e, work.u, bytes);
  if (job.v) std::memcpy(job.v + e, work.v, bytes);
  write_model_input(job, work.x, e, n);
  return all_finite(work.x, n) ? 0 : FS_NOT_FINITE;
}

// The same for the shapes step_fused.h knows, in one pass.
template <class T>
int run_block_fused(const Job<T>& job, const FusedRow<T>& row, int64_t e, int64_t n,
                    Workspace<T>& work) {
  load_branches(job, e, n, work);
  load_noises(job, e, n, work);
  if (job.mixed > 1) mix_branches(job, n, work);
  const T* f = job.mixed > 1 ? work.f : work.branch_at[job.branch_of[0]];
  const bool finite = row.run(f, row.noise >= 0 ? work.noise_at[row.noise] : nullptr, e, n);
  write_model_input(job, job.x + e, e, n);
  return finite ? 0 : FS_NOT_FINITE;
}

template <class T>
int run(const Job<T>& job, int64_t begin, int64_t end, Workspace<T>& work) {
  FusedRow<T> row;
  const bool fused = find_fused(job, row);
  int status = 0;
  for (int64_t e = begin; e < end; e += kBlock) {
    const int64_t n = end - e < kBlock ? end - e : kBlock;
    status |= fused ? run_block_fused(job, row, e, n, work) : run_block(job, e, n, work);
  }
  return status;
}

// Elements [begin, end) of a sample whose groups have rows of their own. Neighbouring groups at one
// row run together.
template <class T>
int run_groups(const fs_step_args& a, const Dims& d, int64_t b, int64_t begin, int64_t end,
               Job<T>& job, Workspace<T>& work) {
  const int32_t* rows = a.row + b * a.groups;
  const int64_t period = a.groups * a.inner;
  int status = 0;
  for (int64_t g = 0, next; g < a.groups; g = next) {
    for (next = g + 1; next < a.groups && rows[next] == rows[g];) ++next;
    prepare(job, a, d, b, rows[g]);
    if (next - g == a.groups) return run(job, begin, end, work);
    for (int64_t base = begin / period * period; base < end; base += period) {
      const int64_t low = base + g * a.inner, high = base + next * a.inner;
      status |= run(job, low < begin ? begin : low, high > end ? end : high, work);
    }
  }
  return status;
}

void write_times(const fs_step_args& a, const Dims& d, int64_t b) {
  for (int64_t g = 0; g < a.groups; ++g) {
    const int64_t row = a.row[b * a.groups + g];
    for (int e = 0; e < d.E; ++e) {
      const int64_t at = row * d.floats() + d.t() + e;
      a.t_out[(b * a.groups + g) * d.E + e] =
          a.state_dtype == FS_F64 ? static_cast<float>(static_cast<const double*>(a.table_f)[at])
                                  : static_cast<const float*>(a.table_f)[at];
    }
  }
}

template <class T>
int run_sample(const fs_step_args& a, const Dims& d, int64_t b, int64_t begin, int64_t end) {
  const int bad = check_sample(a, d, b);
  if (bad) return bad;
  if (begin == 0 && a.t_out) write_times(a, d, b);
  if (begin == end) return 0;
  Job<T> job;
  Workspace<T> work;
  if (a.groups > 1) return run_groups(a, d, b, begin, end, job, work);
  prepare(job, a, d, b, a.row[b]);
  return run(job, begin, end, work);
}

}  // namespace

namespace FS_ISA {

void step(const fs_step_args& a, int64_t first, int64_t last) {
  const Dims d = dims_of(a);
  const int64_t blocks = blocks_of(a.elements);
  for (int64_t block = first; block < last;) {
    const int64_t b = block / blocks, next = (b + 1) * blocks < last ? (b + 1) * blocks : last;
    const int64_t begin = (block - b * blocks) * kBlock, limit = (next - b * blocks) * kBlock;
    const int64_t end = limit < a.elements ? limit : a.elements;
    const int status = a.state_dtype == FS_F64 ? run_sample<double>(a, d, b, begin, end)
                                               : run_sample<float>(a, d, b, begin, end);
    if (status && a.status) __atomic_fetch_or(a.status + b, status, __ATOMIC_RELAXED);
    block = next;
  }
}

}  // namespace FS_ISA
}  // namespace fs
