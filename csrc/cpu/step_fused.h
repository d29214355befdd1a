// The commonest rows in one pass over memory: reads x, up to four slots, the prediction and at most
// one noise; writes x' and at most one slot; no mask, no bound. Same operations in the same order
// as the general path of step.cpp.
#pragma once

#include "row_job.h"

namespace fs {
namespace {

constexpr int kFusedSlots = 4;

template <class T>
struct FusedRow {
  using Pass = bool (*)(const FusedRow&, const T* f, const T* noise, int64_t e, int64_t n);
  Pass pass;
  int noise;  // number of the noise read, -1 = none
  const T* slot[kFusedSlots];
  T *x, *u, *preview;
  T w, w0p, q, high, dx, dm;
  T coef[2][kFusedSlots + 3];  // x', u over x, slots, m, noise

  bool run(const T* f, const T* n_l, int64_t e, int64_t n) const {
    return pass(*this, f, n_l, e, n);
  }
};

// S slots read, a noise, a slot written, a preview. False when an x' is not finite.
template <int S, bool Noise, bool Write, bool Preview>
bool fused_pass(const FusedRow<float>& row, const float* f, const float* noise, int64_t e,
                int64_t n) {
  float* x = row.x + e;
  float* u = Write ? row.u + e : nullptr;
  float* preview = Preview ? row.preview + e : nullptr;
  const float *s0 = S > 0 ? row.slot[0] + e : nullptr, *s1 = S > 1 ? row.slot[1] + e : nullptr;
  const float *s2 = S > 2 ? row.slot[2] + e : nullptr, *s3 = S > 3 ? row.slot[3] + e : nullptr;
  const float w = row.w, w0p = row.w0p, q = row.q, high = row.high, low = -high, dx = row.dx,
              dm = row.dm;
  const float *a = row.coef[0], *b = row.coef[1];
  const float a0 = a[0], a1 = a[1], a2 = a[2], a3 = a[3], a4 = a[4], am = a[1 + S], an = a[2 + S];
  const float b0 = b[0], b1 = b[1], b2 = b[2], b3 = b[3], b4 = b[4], bm = b[1 + S], bn = b[2 + S];
  uint32_t largest = 0;
  FS_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    const float xi = x[i];
    float m = w0p * xi + q * (w * f[i]);
    m = m < low ? low : m;
    m = m > high ? high : m;
    float next = a0 * xi, kept = b0 * xi;
    if constexpr (S > 0) next = next + a1 * s0[i], kept = kept + b1 * s0[i];
    if constexpr (S > 1) next = next + a2 * s1[i], kept = kept + b2 * s1[i];
    if constexpr (S > 2) next = next + a3 * s2[i], kept = kept + b3 * s2[i];
    if constexpr (S > 3) next = next + a4 * s3[i], kept = kept + b4 * s3[i];
    next = next + am * m, kept = kept + bm * m;
    if constexpr (Noise) next = next + an * noise[i], kept = kept + bn * noise[i];
    if constexpr (Preview) preview[i] = dx * xi + dm * m;
    x[i] = next;
    if constexpr (Write) u[i] = kept;
    const uint32_t magnitude = bits_of(next) & 0x7FFFFFFFu;
    largest = magnitude > largest ? magnitude : largest;
  }
  return largest < 0x7F800000u;
}

template <int S, bool Noise>
FusedRow<float>::Pass pick_writes(bool write, bool preview) {
  if (write) return preview ? fused_pass<S, Noise, true, true> : fused_pass<S, Noise, true, false>;
  return preview ? fused_pass<S, Noise, false, true> : fused_pass<S, Noise, false, false>;
}

template <bool Noise>
FusedRow<float>::Pass pick_slots(int slots, bool write, bool preview) {
  switch (slots) {
    case 0: return pick_writes<0, Noise>(write, preview);
    case 1: return pick_writes<1, Noise>(write, preview);
    case 2: return pick_writes<2, Noise>(write, preview);
    case 3: return pick_writes<3, Noise>(write, preview);
    default: return pick_writes<4, Noise>(write, preview);
  }
}

// Fills `row` and returns true when the job has one of the shapes above.
inline bool find_fused(const Job<float>& job, FusedRow<float>& row) {
  const fs_step_args& a = *job.args;
  if (!job.read_m || !job.f_counts || job.mixed == 0 || job.has_bound || job.v || job.blend)
    return false;
  if (job.operands < 2 || job.operand[0].memory != job.x) return false;
  int slots = 0, k = 1;
  for (; k < job.operands && job.operand[k].kind == Kind::kMemory; ++k) {
    if (slots == kFusedSlots) return false;
    row.slot[slots++] = job.operand[k].memory;
  }
  if (k == job.operands || job.operand[k].kind != Kind::kM) return false;
  const bool noise = ++k < job.operands && job.operand[k].kind == Kind::kNoise;
  if (k + noise != job.operands) return false;
  row.noise = noise ? job.operand[k].number : -1;
  for (int o = 0; o < 2; ++o) {
    for (int j = 0; j < kFusedSlots + 3; ++j)
      row.coef[o][j] = j < job.operands ? job.coef[o][j] : 0;
  }
  row.x = job.x;
  row.u = job.u;
  row.preview = a.preview ? static_cast<float*>(a.preview) + job.sample * a.elements : nullptr;
  row.w = job.mixed == 1 ? job.weight[0] : 1;  // with more branches the caller mixes f first
  row.w0p = job.w0p, row.q = job.q, row.dx = job.dx, row.dm = job.dm;
  row.high = job.clip > 0 ? job.clip : __builtin_inff();
  row.pass = noise ? pick_slots<true>(slots, job.u, row.preview)
                   : pick_slots<false>(slots, job.u, row.preview);
  return true;
}

inline bool find_fused(const Job<double>&, FusedRow<double>&) { return false; }

}  // namespace
}  // namespace fs
