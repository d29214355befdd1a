// The commonest rows in one pass over memory: reads x, the prediction and up to ten slots, or up to
// four and one noise; writes x' and at most one slot; no mask, no bound. Same operations in the
// same order as the general path of step.cpp, which reads every operand once for each output.
#pragma once

#include <utility>

#include "row_job.h"

namespace fs {
namespace {

constexpr size_t kFusedSlots = 10, kNoisySlots = 4;  // fitted plans draw no noise
using FusedPass = decltype(Job<float>::fused);

// Slots read, as operands 1 + K; a noise, a slot written, a preview. False when an x' is not
// finite.
template <bool Noise, bool Write, bool Preview, size_t... K>
bool fused_pass(const Job<float>& job, const float* f, const float* noise, int64_t e, int64_t n) {
  constexpr size_t kM = 1 + sizeof...(K);  // operand m; a noise follows
  const float* const in[] = {job.x_in + e, job.slot(job.column[1 + K] - 1) + e...};
  float* out = job.out[0] + e;
  float* u = Write ? job.out[1] + e : nullptr;
  float* preview = Preview ? job.preview + e : nullptr;
  const float w = job.mixed == 1 ? job.weight[0] : 1;  // with more branches the caller mixes f
  const Dims& d = job.dims;
  const float w0p = job.w0p, q = job.numbers[d.q()], dx = job.numbers[d.dx()],
              dm = job.numbers[d.dx() + 1], clip = job.numbers[d.clip()],
              high = clip > 0 ? clip : __builtin_inff();
  const float *ca = job.coef[0], *cb = job.coef[1];
  const float a[] = {ca[0], ca[1 + K]...}, am = ca[kM], an = Noise ? ca[kM + 1] : 0;
  const float b[] = {cb[0], cb[1 + K]...}, bm = cb[kM], bn = Noise ? cb[kM + 1] : 0;
  uint32_t largest = 0;
  FS_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    const float x = in[0][i];
    const float m = clamped(w0p * x + q * (w * f[i]), high);
    float next = a[0] * x, kept = b[0] * x;
    ((next = next + a[1 + K] * in[1 + K][i], kept = kept + b[1 + K] * in[1 + K][i]), ...);
    next = next + am * m, kept = kept + bm * m;
    if constexpr (Noise) next = next + an * noise[i], kept = kept + bn * noise[i];
    if constexpr (Preview) preview[i] = dx * x + dm * m;
    out[i] = next;
    if constexpr (Write) u[i] = kept;
    const uint32_t magnitude = bits_of(next) & 0x7FFFFFFFu;
    largest = magnitude > largest ? magnitude : largest;
  }
  return largest < 0x7F800000u;
}

template <size_t Shape, size_t... K>
constexpr FusedPass pass_of(std::index_sequence<K...>) {
  if constexpr ((Shape & 1) != 0 && sizeof...(K) > kNoisySlots) return nullptr;
  else return fused_pass<(Shape & 1) != 0, (Shape & 2) != 0, (Shape & 4) != 0, K...>;
}

template <size_t... Shape>
FusedPass pick(size_t shape, std::index_sequence<Shape...>) {
  static constexpr FusedPass passes[] = {pass_of<Shape>(std::make_index_sequence<Shape / 8>())...};
  return passes[shape];
}

// The pass for the job's row, NULL where it has none of the shapes above.
inline FusedPass find_fused(const Job<float>& job) {
  const fs_step_args& a = *job.args;
  const Dims& d = job.dims;
  const uint64_t reads = job.structure.reads, m = uint64_t{1} << d.m();
  const size_t slots = static_cast<size_t>(__builtin_popcountll(reads & (m - 2))),
               noises = static_cast<size_t>(__builtin_popcountll(reads >> d.noise(0)));
  const uint64_t others = reads & ~(m - 2) & low_bits(d.noise(0));  // beside slots and noises
  if (job.needs.mixed == 0 || a.bound || job.structure.dv >= 0 || job.blend || others != (m | 1) ||
      slots > kFusedSlots || noises > 1)
    return nullptr;
  return pick(8 * slots + 4 * (a.preview != nullptr) + 2 * (job.structure.du >= 0) + noises,
              std::make_index_sequence<8 * (kFusedSlots + 1)>());
}

}  // namespace
}  // namespace fs
