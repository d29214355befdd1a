// The commonest rows in one pass over memory: reads x, up to four slots, the prediction and at most
// one noise; writes x' and at most one slot; no mask, no bound. Same operations in the same order
// as the general path of step.cpp.
#pragma once

#include "row_job.h"

namespace fs {
namespace {

constexpr int kFusedSlots = 4;
using FusedPass = decltype(Job<float>::fused);

// S slots read, a noise, a slot written, a preview. False when an x' is not finite.
template <int S, bool Noise, bool Write, bool Preview>
bool fused_pass(const Job<float>& job, const float* f, const float* noise, int64_t e, int64_t n) {
  const float* x = job.x_in + e;
  float* out = job.x + e;
  float* u = Write ? job.u + e : nullptr;
  float* preview = Preview ? job.preview + e : nullptr;
  const auto slot = [&](int k) { return k <= S ? job.slot(job.operand[k].number) + e : nullptr; };
  const float *s1 = slot(1), *s2 = slot(2), *s3 = slot(3), *s4 = slot(4);
  const float w = job.mixed == 1 ? job.weight[0] : 1;  // with more branches the caller mixes f
  const float w0p = job.w0p, q = job.q, dx = job.dx, dm = job.dm;
  const float high = job.clip > 0 ? job.clip : __builtin_inff();
  const auto coef = [&](int o, int k) { return k < S + 2 + Noise ? job.coef[o][k] : 0; };
  const float a0 = coef(0, 0), a1 = coef(0, 1), a2 = coef(0, 2), a3 = coef(0, 3), a4 = coef(0, 4),
              am = coef(0, 1 + S), an = coef(0, 2 + S);
  const float b0 = coef(1, 0), b1 = coef(1, 1), b2 = coef(1, 2), b3 = coef(1, 3), b4 = coef(1, 4),
              bm = coef(1, 1 + S), bn = coef(1, 2 + S);
  uint32_t largest = 0;
  FS_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    const float xi = x[i];
    const float m = clamped(w0p * xi + q * (w * f[i]), high);
    float next = a0 * xi, kept = b0 * xi;
    if constexpr (S > 0) next = next + a1 * s1[i], kept = kept + b1 * s1[i];
    if constexpr (S > 1) next = next + a2 * s2[i], kept = kept + b2 * s2[i];
    if constexpr (S > 2) next = next + a3 * s3[i], kept = kept + b3 * s3[i];
    if constexpr (S > 3) next = next + a4 * s4[i], kept = kept + b4 * s4[i];
    next = next + am * m, kept = kept + bm * m;
    if constexpr (Noise) next = next + an * noise[i], kept = kept + bn * noise[i];
    if constexpr (Preview) preview[i] = dx * xi + dm * m;
    out[i] = next;
    if constexpr (Write) u[i] = kept;
    const uint32_t magnitude = bits_of(next) & 0x7FFFFFFFu;
    largest = magnitude > largest ? magnitude : largest;
  }
  return largest < 0x7F800000u;
}

template <int S, bool Noise>
FusedPass pick_writes(bool write, bool preview) {
  if (write) return preview ? fused_pass<S, Noise, true, true> : fused_pass<S, Noise, true, false>;
  return preview ? fused_pass<S, Noise, false, true> : fused_pass<S, Noise, false, false>;
}

template <bool Noise>
FusedPass pick_slots(int slots, bool write, bool preview) {
  switch (slots) {
    case 0: return pick_writes<0, Noise>(write, preview);
    case 1: return pick_writes<1, Noise>(write, preview);
    case 2: return pick_writes<2, Noise>(write, preview);
    case 3: return pick_writes<3, Noise>(write, preview);
    default: return pick_writes<4, Noise>(write, preview);
  }
}

// The pass for the job's row, NULL where it has none of the shapes above.
inline FusedPass find_fused(const Job<float>& job) {
  const fs_step_args& a = *job.args;
  const auto is = [&](int k, Kind kind) { return k < job.operands && job.operand[k].kind == kind; };
  if (job.needs.mixed == 0 || a.bound || job.structure.dv >= 0 || job.blend) return nullptr;
  int slots = 0;
  while (is(1 + slots, Kind::kSlot)) ++slots;
  if (!is(0, Kind::kState) || slots > kFusedSlots || !is(1 + slots, Kind::kM)) return nullptr;
  const bool noise = is(2 + slots, Kind::kNoise), write = job.structure.du >= 0;
  if (2 + slots + noise != job.operands) return nullptr;
  return noise ? pick_slots<true>(slots, write, a.preview != nullptr)
               : pick_slots<false>(slots, write, a.preview != nullptr);
}

inline bool (*find_fused(const Job<double>&))(const Job<double>&, const double*, const double*,
                                              int64_t, int64_t) {
  return nullptr;
}

}  // namespace
}  // namespace fs
