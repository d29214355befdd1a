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
  alignas(64) T f[kBlock], m[kBlock], out[3][kBlock], known[kBlock];
  alignas(64) T branch[FS_MAX_BRANCHES][kBlock];
  alignas(64) T noise[FS_MAX_NOISES][kBlock];
  const T* at[kMaxOperands];  // where the block of each operand column stands
};

// Points at the block of each branch that is there, widened where the model's dtype is not T.
template <class T>
void load_branches(const Job<T>& job, int64_t e, int64_t n, Workspace<T>& work) {
  for (int g = 0; g < job.dims.G; ++g) {
    if (job.f[g])
      work.at[job.dims.branch(g)] =
          numbers_in(job.f[g], job.args->model_dtype, e, work.branch[g], n);
  }
}

// Points at the block of each noise read: the caller's or Philox's, times the sample's noise scale.
template <class T>
void load_noises(const Job<T>& job, int64_t e, int64_t n, Workspace<T>& work) {
  const fs_step_args& a = *job.args;
  const int64_t C = a.channels;
  for (int l = 0; l < job.dims.L; ++l) {
    if ((job.needs.noises >> l & 1) == 0) continue;
    T* out = work.noise[l];
    const T *given = static_cast<const T*>(a.noise[l]), *from = out;
    const Draw draw{job.draw.seed, static_cast<uint32_t>(job.ids[l]), job.draw.stage};
    if (given) from = given + job.sample * a.elements + e;
    else if (C > 1) normals_across(draw, C, a.elements / C, e, n, out);
    else normals(draw, e, n, out);
    work.at[job.dims.noise(l)] = a.noise_scale ? out : from;
    if (!a.noise_scale) continue;
    const T scale = static_cast<const T*>(a.noise_scale)[job.sample];
    FS_INDEPENDENT
    for (int64_t i = 0; i < n; ++i) out[i] = from[i] * scale;
  }
}

template <class T>
void mix_branches(const Job<T>& job, int64_t n, Workspace<T>& work) {
  const T* terms[FS_MAX_BRANCHES];
  for (int k = 0; k < job.mixed; ++k) terms[k] = work.at[job.dims.branch(job.branch_of[k])];
  lincomb(terms, job.weight, job.mixed, work.f, n);
}

template <class T>
void predict(const Job<T>& job, int64_t n, Workspace<T>& work) {
  const T* terms[2] = {work.at[0], work.f};
  const T coef[2] = {job.w0p, job.numbers[job.dims.q()]};
  T* __restrict__ m = work.m;
  lincomb(terms, coef, job.structure.branches ? 2 : 1, m, n);
  const T bound = job.bound, clip = job.numbers[job.dims.clip()];
  if (job.args->bound) {
    for (int64_t i = 0; i < n; ++i) m[i] = clamped(m[i], bound) / bound;
  } else if (clip > 0) {
    for (int64_t i = 0; i < n; ++i) m[i] = clamped(m[i], clip);
  }
}

// x' += mask (t - x') with t = ky y + sum_l Cy_l n_l over the bits of known_reads.
template <class T>
void blend_known(const Job<T>& job, int64_t e, int64_t n, Workspace<T>& work) {
  const fs_step_args& a = *job.args;
  const T* terms[1 + FS_MAX_NOISES];
  T coef[1 + FS_MAX_NOISES];
  int count = 0;
  for (int k = 0; k <= job.dims.L; ++k) {
    if ((job.structure.known_reads >> k & 1) == 0) continue;
    terms[count] = k > 0 ? work.at[job.dims.noise(k - 1)]
                         : static_cast<const T*>(a.known) + job.sample * a.known_batch_stride + e;
    coef[count++] = job.numbers[job.dims.ky() + k];
  }
  lincomb(terms, coef, count, work.known, n);
  const T* __restrict__ mask = static_cast<const T*>(a.mask) + job.sample * a.mask_batch_stride + e;
  const T* __restrict__ target = work.known;
  T* __restrict__ x = work.out[0];
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
    narrow_scaled(x, job.numbers[job.dims.c()], a.model_input, a.model_dtype,
                  (copy * a.batch + job.sample) * a.elements + e, n);
  }
}

// The shapes step_fused.h knows, in one pass.
template <class T>
bool run_fused(const Job<T>& job, int64_t e, int64_t n, Workspace<T>& work) {
  if (job.mixed > 1) mix_branches(job, n, work);
  const T* f = job.mixed > 1 ? work.f : work.at[job.dims.branch(job.branch_of[0])];
  const bool finite = job.fused(job, f, work.at[job.column[job.operands - 1]], e, n);
  write_model_input(job, job.out[0] + e, e, n);
  return finite;
}

// Elements [e, e + n), at most a block; false when an x' is not finite.
template <class T>
bool run_block(const Job<T>& job, int64_t e, int64_t n, Workspace<T>& work) {
  load_branches(job, e, n, work);
  load_noises(job, e, n, work);
  if (job.fused && job.mixed > 0) return run_fused(job, e, n, work);
  work.at[0] = job.x_in + e;
  for (int s = 0; s < job.dims.S; ++s) work.at[job.dims.slot(s)] = job.slot(s) + e;
  if (job.needs.f) mix_branches(job, n, work);
  if (job.needs.m) predict(job, n, work);
  if (job.preview) {
    const T* terms[2] = {work.at[0], work.m};
    lincomb(terms, job.numbers + job.dims.dx(), 2, job.preview + e, n);
  }
  const T* terms[kMaxOperands];
  for (int k = 0; k < job.operands; ++k) terms[k] = work.at[job.column[k]];
  for (int o = 0; o < 3; ++o) {
    if (job.out[o]) lincomb(terms, job.coef[o], job.operands, work.out[o], n);
  }
  if (job.blend) blend_known(job, e, n, work);
  for (int o = 0; o < 3; ++o) {
    if (job.out[o]) std::memcpy(job.out[o] + e, work.out[o], static_cast<size_t>(n) * sizeof(T));
  }
  write_model_input(job, work.out[0], e, n);
  return all_finite(work.out[0], n);
}

template <class T>
bool run(const Job<T>& job, int64_t begin, int64_t end, Workspace<T>& work) {
  bool finite = true;
  for (int64_t e = begin; e < end; e += kBlock) {
    finite &= run_block(job, e, end - e < kBlock ? end - e : kBlock, work);
  }
  return finite;
}

// A row that the last sample or group had is not looked up again.
template <class T>
void prepare(Job<T>& job, int64_t b, int64_t row) {
  if (row != job.row) {
    find_row(job, row);
    if constexpr (sizeof(T) == 4) job.fused = find_fused(job);
  }
  find_sample(job, b);
}

// Elements [begin, end) of a sample whose groups have rows of their own. Neighbouring groups at one
// row run together.
template <class T>
bool run_groups(Job<T>& job, int64_t b, int64_t begin, int64_t end, Workspace<T>& work) {
  const fs_step_args& a = *job.args;
  const int64_t period = a.groups * a.inner;
  bool finite = true;
  for (int64_t g = 0, next; g < a.groups; g = next) {
    const int64_t row = row_of(a, b, g);
    for (next = g + 1; next < a.groups && row_of(a, b, next) == row;) ++next;
    prepare(job, b, row);
    if (next - g == a.groups) return run(job, begin, end, work);
    for (int64_t base = begin / period * period; base < end; base += period) {
      const int64_t low = base + g * a.inner, high = base + next * a.inner;
      finite &= run(job, low < begin ? begin : low, high > end ? end : high, work);
    }
  }
  return finite;
}

// t_out of sample b, whose table is of T.
template <class T>
void write_times(const fs_step_args& a, const Dims& d, int64_t b) {
  for (int64_t g = 0; g < a.groups; ++g) {
    const T* t = static_cast<const T*>(a.table_f) + row_of(a, b, g) * d.floats() + d.t();
    for (int e = 0; e < d.E; ++e) {
      const int64_t at = (b * a.groups + g) * d.E + e;
      if (a.t_dtype == FS_F64) static_cast<double*>(a.t_out)[at] = static_cast<double>(t[e]);
      else static_cast<float*>(a.t_out)[at] = static_cast<float>(t[e]);
    }
  }
}

// Blocks [first, last) of the batch; a sample's first one brings its checks and its times.
template <class T>
bool run_blocks(const fs_step_args& a, int64_t first, int64_t last) {
  Job<T> job;
  Workspace<T> work;
  job.args = &a;
  job.dims = dims_of(a);
  work.at[job.dims.m()] = work.m, work.at[job.dims.f()] = work.f;
  bool finite = true;
  for_samples(first, last, blocks_of(a.elements), [&](int64_t b, int64_t low, int64_t high) {
    const int64_t begin = low * kBlock,
                  end = high * kBlock < a.elements ? high * kBlock : a.elements;
    const int32_t bad = check_sample(a, job.dims, b);
    if (bad && begin == 0 && a.status && (a.status[b] & 0xFF) == 0) a.status[b] = bad;
    if (bad) return;
    if (begin == 0 && a.t_out) write_times<T>(a, job.dims, b);
    if (begin < end) finite &= run_groups(job, b, begin, end, work);
  });
  return finite;
}

}  // namespace

namespace FS_ISA {

bool step(const fs_step_args& a, int64_t first, int64_t last) {
  return a.state_dtype == FS_F64 ? run_blocks<double>(a, first, last)
                                 : run_blocks<float>(a, first, last);
}

}  // namespace FS_ISA
}  // namespace fs
