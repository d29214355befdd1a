// x', u, v of any row (fastsample.h, fs_step), a quad of elements a thread. Compile with
// --fmad=false: products are rounded before sums, terms are added in the order written there.
//
// Every thread looks its row up by itself: in one sample all threads find the same, so that no
// branch diverges. All operands in memory are asked for before the first is used, and used before
// anything is written.
#pragma once

#include "quad.h"
#include "rules.h"

namespace fs {
namespace {

// The operands asked for ahead; a row with more reads the rest as it comes to them.
constexpr int kAheadSlots = 4, kAheadBranches = 2;

__device__ __forceinline__ int lowest(uint32_t bits) { return __ffs(static_cast<int>(bits)) - 1; }

// A row and the sample it runs for.
template <class T>
struct Job {
  const T* number;
  const int32_t* ids;
  Structure structure;
  Needs needs;
  uint32_t slots, mixed;  // bits: slots read; branches that enter f and are there
  bool blend;
  int64_t sample;
  const T *x_in, *slot;
  T *x, *u, *v;
  int64_t slot_stride;
};

template <class T>
__device__ __forceinline__ Job<T> job_of(const fs_step_args& a, const Dims& d, int64_t b,
                                         int64_t row) {
  Job<T> job;
  const int64_t at = place_of(a, b) * a.elements;
  job.number = static_cast<const T*>(a.table_f) + row * d.floats();
  job.ids = a.table_i + row * d.ints() + kIds;
  job.structure = structure_of(a.table_i + row * d.ints());
  job.blend = blends(a, job.structure);
  job.needs = needs_of(d, job.structure, a.preview != nullptr, job.blend);
  job.slots = static_cast<uint32_t>(job.structure.reads >> 1 & low_bits(d.S));
  job.mixed = job.needs.mixed;
  job.sample = b;
  job.x_in = static_cast<const T*>(a.x_in ? a.x_in : a.x) + at;
  job.x = static_cast<T*>(a.x_out ? a.x_out : a.x) + at;
  job.slot_stride = a.slot_stride ? a.slot_stride : a.pool * a.elements;
  T* slots = static_cast<T*>(a.slots);
  job.slot = slots ? slots + at : nullptr;
  job.u = job.structure.du >= 0 ? slots + at + job.structure.du * job.slot_stride : nullptr;
  job.v = job.structure.dv >= 0 ? slots + at + job.structure.dv * job.slot_stride : nullptr;
#pragma unroll 1
  for (int g = 0; g < d.G; ++g) {
    if ((job.mixed >> g & 1) != 0 && branch_row(a, b, g) < 0) job.mixed &= ~(1u << g);
  }
  return job;
}

// x', and u and v where they are written, while columns are added to them.
template <class T>
struct Sums {
  Quad<T> x, u, v;
  bool any;
};

template <class T>
__device__ __forceinline__ void add_column(Sums<T>& sums, const Job<T>& job, int W, int column,
                                           const Quad<T>& value) {
  add(sums.x, job.number[column], value);
  if (job.u) add(sums.u, job.number[W + column], value);
  if (job.v) add(sums.v, job.number[2 * W + column], value);
  sums.any = true;
}

// f_g, in the dtype that only the launch knows: one kernel serves all four.
template <class T, bool Whole>
__device__ __forceinline__ Quad<T> load_branch(const fs_step_args& a, int64_t b, int g, int64_t e,
                                               int n) {
  const int64_t at = branch_row(a, b, g) * a.elements + e;
  switch (a.model_dtype) {
    case FS_F32: return widened<T>(load<Whole>(static_cast<const float*>(a.f[g]) + at, n));
    case FS_F64: return widened<T>(load<Whole>(static_cast<const double*>(a.f[g]) + at, n));
    case FS_F16: return widened<T>(load<Whole>(static_cast<const Half*>(a.f[g]) + at, n));
    default: return widened<T>(load<Whole>(static_cast<const Bfloat*>(a.f[g]) + at, n));
  }
}

template <class F, class T, bool Whole>
__device__ __forceinline__ void store_input(const fs_step_args& a, int64_t b, T c, const Quad<T>& x,
                                            int64_t e, int n) {
  const Quad<F> input = scaled<F>(c, x);
#pragma unroll 1
  for (int64_t copy = 0; copy < a.copies; ++copy)
    store<Whole>(static_cast<F*>(a.model_input) + (copy * a.batch + b) * a.elements + e, input, n);
}

// The first number makes room at the end.
template <class T>
__device__ __forceinline__ void move_up(Quad<T>& v) {
  v.at[0] = v.at[1], v.at[1] = v.at[2], v.at[2] = v.at[3];
}

// Normals of the numbers at [e, e + 4) of a sample whose channels lie last: each in a block of its
// own, so that the loop is compiled once for all four.
template <class T>
__device__ __forceinline__ Quad<T> normals_across(const Draw& draw, int64_t C, int64_t R,
                                                  int64_t e) {
  int64_t r = e / C, c = e - r * C;
  Quad<T> out{};
#pragma unroll 1
  for (int k = 0; k < kQuad; ++k) {
    move_up(out);
    out.at[3] = static_cast<T>(normal_of(draw, static_cast<uint64_t>(c * R + r)));
    if (++c == C) c = 0, ++r;
  }
  return out;
}

// n_l of elements [e, e + n), which lie in one Philox block where channels do not lie last.
template <class T, bool Whole>
__device__ __forceinline__ Quad<T> noise_of(const fs_step_args& a, const Job<T>& job, int l,
                                            int64_t e, int n) {
  const int64_t b = job.sample;
  Quad<T> out;
  if (a.noise[l]) {
    out = load<Whole>(static_cast<const T*>(a.noise[l]) + b * a.elements + e, n);
  } else {
    const Draw draw = draw_of(a, b, static_cast<uint32_t>(job.ids[l]));
    if (a.channels > 1) {
      out = normals_across<T>(draw, a.channels, a.elements / a.channels, e);
    } else {
      out = normals_quad<T>(draw, static_cast<uint64_t>(e / kQuad));
#pragma unroll 1
      for (int64_t skipped = 0; !Whole && skipped < e % kQuad; ++skipped) move_up(out);
    }
  }
  if (!a.noise_scale) return out;
  const T scale = static_cast<const T*>(a.noise_scale)[b];
#pragma unroll
  for (int k = 0; k < kQuad; ++k) out.at[k] = out.at[k] * scale;
  return out;
}

// m = clip(w_0 p x + q f).
template <class T>
__device__ __forceinline__ Quad<T> predict(const fs_step_args& a, const Dims& d, const Job<T>& job,
                                           const Quad<T>& x, const Quad<T>& f) {
  Quad<T> m = no_sum<T>();
  add(m, state_weight(a, d, job.number, job.sample), x);
  if (job.structure.branches != 0) add(m, job.number[d.q()], f);
  if (a.bound) {
    const T high = static_cast<const T*>(a.bound)[job.sample];
    clamp(m, high);
#pragma unroll
    for (int k = 0; k < kQuad; ++k) m.at[k] = m.at[k] / high;
  } else if (job.number[d.clip()] > 0) {
    clamp(m, job.number[d.clip()]);
  }
  return m;
}

// Adds the columns of the noises, and what a mask keeps of the known image.
template <class T, bool Whole>
__device__ __forceinline__ void add_noises(const fs_step_args& a, const Dims& d, const Job<T>& job,
                                           Sums<T>& sums, int64_t e, int n) {
  const uint32_t known_reads = job.blend ? job.structure.known_reads : 0;
  Quad<T> target = no_sum<T>(), mask;
  if (job.blend)
    mask = load<Whole>(static_cast<const T*>(a.mask) + job.sample * a.mask_batch_stride + e, n);
  if ((known_reads & 1) != 0) {
    const T* known = static_cast<const T*>(a.known) + job.sample * a.known_batch_stride;
    add(target, job.number[d.ky()], load<Whole>(known + e, n));
  }
#pragma unroll 1
  for (uint32_t left = job.needs.noises; left != 0; left &= left - 1) {
    const int l = lowest(left);
    const Quad<T> noise = noise_of<T, Whole>(a, job, l, e, n);
    if ((job.structure.reads >> d.noise(l) & 1) != 0)
      add_column(sums, job, d.W(), d.noise(l), noise);
    if ((known_reads >> 1 >> l & 1) != 0) add(target, job.number[d.ky() + 1 + l], noise);
  }
  if (!sums.any) sums.x = sums.u = sums.v = Quad<T>{};
  if (!job.blend) return;
#pragma unroll
  for (int k = 0; k < kQuad; ++k)
    sums.x.at[k] = sums.x.at[k] + mask.at[k] * (target.at[k] - sums.x.at[k]);
}

template <class T, bool Whole>
__device__ __forceinline__ void write(const fs_step_args& a, const Dims& d, const Job<T>& job,
                                      const Sums<T>& sums, int64_t e, int n) {
  store<Whole>(job.x + e, sums.x, n);
  if (job.u) store<Whole>(job.u + e, sums.u, n);
  if (job.v) store<Whole>(job.v + e, sums.v, n);
  if (!a.model_input) return;
  const T c = job.number[d.c()];
  switch (a.model_dtype) {
    case FS_F32: return store_input<float, T, Whole>(a, job.sample, c, sums.x, e, n);
    case FS_F64: return store_input<double, T, Whole>(a, job.sample, c, sums.x, e, n);
    case FS_F16: return store_input<Half, T, Whole>(a, job.sample, c, sums.x, e, n);
    default: store_input<Bfloat, T, Whole>(a, job.sample, c, sums.x, e, n);
  }
}

// Elements [e, e + n) of a sample, inside one Philox block and one row. True when every x' is
// finite.
template <class T, bool Whole>
__device__ __forceinline__ bool run_quad(const fs_step_args& a, const Dims& d, const Job<T>& job,
                                         int64_t e, int n) {
  const auto is_read = [&](int column) { return (job.structure.reads >> column & 1) != 0; };
  const auto slot_at = [&](int s) { return load<Whole>(job.slot + s * job.slot_stride + e, n); };
  const auto branch_at = [&](int g) { return load_branch<T, Whole>(a, job.sample, g, e, n); };
  Quad<T> x{}, slot[kAheadSlots], branch[kAheadBranches];
  uint32_t slots = job.slots, mixed = job.mixed;
  if (is_read(0) || job.needs.m) x = load<Whole>(job.x_in + e, n);
#pragma unroll
  for (int k = 0; k < kAheadBranches; ++k, mixed &= mixed - 1) {
    if (mixed != 0) branch[k] = branch_at(lowest(mixed));
  }
#pragma unroll
  for (int k = 0; k < kAheadSlots; ++k, slots &= slots - 1) {
    if (slots != 0) slot[k] = slot_at(lowest(slots));
  }

  Quad<T> f = no_sum<T>(), m{};
  mixed = job.mixed;
#pragma unroll
  for (int k = 0; k < kAheadBranches; ++k, mixed &= mixed - 1) {
    if (mixed != 0) add(f, branch_weight(a, d, job.number, job.sample, lowest(mixed)), branch[k]);
  }
#pragma unroll 1
  for (; mixed != 0; mixed &= mixed - 1)
    add(f, branch_weight(a, d, job.number, job.sample, lowest(mixed)), branch_at(lowest(mixed)));
  if (job.mixed == 0) f = Quad<T>{};
  if (job.needs.m) m = predict(a, d, job, x, f);

  Sums<T> sums{no_sum<T>(), no_sum<T>(), no_sum<T>(), false};
  const int W = d.W();
  if (is_read(0)) add_column(sums, job, W, 0, x);
  slots = job.slots;
#pragma unroll
  for (int k = 0; k < kAheadSlots; ++k, slots &= slots - 1) {
    if (slots != 0) add_column(sums, job, W, d.slot(lowest(slots)), slot[k]);
  }
#pragma unroll 1
  for (; slots != 0; slots &= slots - 1)
    add_column(sums, job, W, d.slot(lowest(slots)), slot_at(lowest(slots)));
  if (is_read(d.m())) add_column(sums, job, W, d.m(), m);
  if (is_read(d.f())) add_column(sums, job, W, d.f(), f);
#pragma unroll 1
  for (uint32_t left = job.needs.direct; left != 0; left &= left - 1)
    add_column(sums, job, W, d.branch(lowest(left)), branch_at(lowest(left)));
  add_noises<T, Whole>(a, d, job, sums, e, n);

  if (a.preview) {
    Quad<T> image = no_sum<T>();
    add(image, job.number[d.dx()], x), add(image, job.number[d.dx() + 1], m);
    store<Whole>(static_cast<T*>(a.preview) + job.sample * a.elements + e, image, n);
  }
  write<T, Whole>(a, d, job, sums, e, n);
  return is_finite(sums.x, n);
}

}  // namespace
}  // namespace fs
