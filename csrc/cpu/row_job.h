// One row of one sample with everything looked up: what step.cpp runs over a range of elements.
#pragma once

#include "core/dtype.h"
#include "core/row.h"
#include "kernels.h"

namespace fs {
namespace {

constexpr int kMaxOperands = 3 + FS_MAX_SLOTS + FS_MAX_BRANCHES + FS_MAX_NOISES;

inline Dims dims_of(const fs_step_args& a) { return {a.S, a.G, a.L, a.K, a.E}; }

// Which branches row `ints` needs: those in f if f is needed, and those read as operands.
inline uint32_t direct_branches(const Dims& d, const int32_t* ints) {
  return static_cast<uint32_t>(join_reads(ints[kReadsLow], ints[kReadsHigh]) >> d.branch(0) &
                               low_bits(d.G));
}

inline bool needs_m(const fs_step_args& a, const Dims& d, const int32_t* ints) {
  return a.preview != nullptr || (join_reads(ints[kReadsLow], ints[kReadsHigh]) >> d.m() & 1) != 0;
}

inline uint32_t mixed_branches(const fs_step_args& a, const Dims& d, const int32_t* ints) {
  const bool f_read = (join_reads(ints[kReadsLow], ints[kReadsHigh]) >> d.f() & 1) != 0;
  return f_read || needs_m(a, d, ints) ? static_cast<uint32_t>(ints[kBranches]) : 0;
}

inline int64_t branch_row(const fs_step_args& a, int64_t b, int g) {
  return a.f_index ? a.f_index[g * a.batch + b] : b;
}

// Status bits that forbid running row `ints` of sample b.
inline int check_branches(const fs_step_args& a, const Dims& d, int64_t b, const int32_t* ints) {
  const uint32_t direct = direct_branches(d, ints), used = direct | mixed_branches(a, d, ints);
  for (int g = 0; g < d.G; ++g) {
    if ((used >> g & 1) == 0) continue;
    const int64_t at = branch_row(a, b, g), outputs = a.f[g] ? a.outputs : 0;
    if (at < -1 || at >= outputs || (at == -1 && (direct >> g & 1) != 0)) return FS_BAD_BRANCH;
  }
  return 0;
}

inline int check_sample(const fs_step_args& a, const Dims& d, int64_t b) {
  const int64_t place = a.place ? a.place[b] : b;
  int bad = place < 0 || place >= a.pool ? FS_BAD_PLACE : 0;
  for (int64_t g = 0; g < a.groups; ++g) {
    const int64_t row = a.row[b * a.groups + g];
    const int32_t* ints = row >= 0 && row < a.table_rows ? a.table_i + row * d.ints() : nullptr;
    if (!ints || !row_in_range(d, ints)) bad |= FS_BAD_ROW;
    else bad |= check_branches(a, d, b, ints);
  }
  return bad;
}

// Operands a row reads, in column order, with the coefficient of each in x', u and v.
enum class Kind : uint8_t { kMemory, kM, kF, kBranch, kNoise };

template <class T>
struct Operand {
  Kind kind;
  int number;       // branch or noise
  const T* memory;  // element 0 of x or of a slot
};

template <class T>
struct Job {
  const fs_step_args* args;
  Dims dims;
  int64_t sample;
  int operands;
  Operand<T> operand[kMaxOperands];
  T coef[3][kMaxOperands];  // [output][operand]
  bool read_m, need_m, need_f;
  bool f_counts;  // the row has branches, so q f is part of m
  T w0p, q, clip, bound, dx, dm, c;
  bool has_bound;
  int mixed;  // branches that enter f
  int branch_of[FS_MAX_BRANCHES];
  T weight[FS_MAX_BRANCHES];
  uint32_t need_branch, need_noise;
  const void* f[FS_MAX_BRANCHES];  // row of f[g] for this sample, in the model's dtype
  uint32_t ids[FS_MAX_NOISES];
  uint64_t seed;
  T *x, *u, *v;
  bool blend;
  const T *mask, *known;
  uint32_t known_reads;
  const T* known_coef;  // ky, Cy_1..Cy_L
};

template <class T>
T branch_weight(const fs_step_args& a, const Dims& d, const T* row, int64_t b, int g) {
  if (a.weights) return static_cast<const T*>(a.weights)[b * (1 + d.G) + 1 + g];
  T w = row[d.U() + g];
  if (a.scale) {
    for (int k = 0; k < d.K; ++k)
      w = w + static_cast<const T*>(a.scale)[b * d.K + k] * row[d.V() + g * d.K + k];
  }
  return w;
}

template <class T>
void find_operands(Job<T>& job, const T* row, uint64_t reads, const T* slots, int64_t slot_stride) {
  const Dims& d = job.dims;
  job.operands = 0;
  for (int k = 0; k < d.W(); ++k) {
    if ((reads >> k & 1) == 0) continue;
    Operand<T>& operand = job.operand[job.operands];
    if (k == 0) operand = {Kind::kMemory, 0, job.x};
    else if (k < d.m()) operand = {Kind::kMemory, 0, slots + (k - 1) * slot_stride};
    else if (k == d.m()) operand = {Kind::kM, 0, nullptr};
    else if (k == d.f()) operand = {Kind::kF, 0, nullptr};
    else if (k < d.noise(0)) operand = {Kind::kBranch, k - d.branch(0), nullptr};
    else operand = {Kind::kNoise, k - d.noise(0), nullptr};
    for (int o = 0; o < 3; ++o) job.coef[o][job.operands] = row[o * d.W() + k];
    ++job.operands;
  }
}

template <class T>
void find_model(Job<T>& job, const T* row, const int32_t* ints, uint64_t reads) {
  const fs_step_args& a = *job.args;
  const Dims& d = job.dims;
  const int64_t b = job.sample;
  job.read_m = (reads >> d.m() & 1) != 0;
  job.need_m = job.read_m || a.preview;
  job.need_f = (reads >> d.f() & 1) != 0 || (job.need_m && ints[kBranches] != 0);
  job.f_counts = ints[kBranches] != 0;
  const T* weights = static_cast<const T*>(a.weights);
  job.w0p = weights ? weights[b * (1 + d.G)] * row[d.p()] : row[d.p()];
  job.q = row[d.q()];
  job.clip = row[d.clip()];
  job.has_bound = a.bound != nullptr;
  job.bound = a.bound ? static_cast<const T*>(a.bound)[b] : 0;
  job.need_branch = direct_branches(d, ints);
  const uint32_t mixed = mixed_branches(a, d, ints);
  job.mixed = 0;
  for (int g = 0; g < d.G; ++g) {
    if (((mixed | job.need_branch) >> g & 1) == 0) continue;
    const int64_t at = branch_row(a, b, g);
    if (at < 0) continue;
    job.f[g] = static_cast<const char*>(a.f[g]) + at * a.elements * dtype_size(a.model_dtype);
    if ((mixed >> g & 1) == 0) continue;
    job.branch_of[job.mixed] = g;
    job.weight[job.mixed++] = branch_weight(a, d, row, b, g);
    job.need_branch |= 1u << g;
  }
}

// Looks up row `row_index` of sample b, whose indices were checked.
template <class T>
void prepare(Job<T>& job, const fs_step_args& a, const Dims& d, int64_t b, int64_t row_index) {
  const T* row = static_cast<const T*>(a.table_f) + row_index * d.floats();
  const int32_t* ints = a.table_i + row_index * d.ints();
  const uint64_t reads = join_reads(ints[kReadsLow], ints[kReadsHigh]);
  const int64_t place = a.place ? a.place[b] : b, D = a.elements;
  T* slots = a.S > 0 ? static_cast<T*>(a.slots) + place * D : nullptr;
  job.args = &a;
  job.dims = d;
  job.sample = b;
  job.x = static_cast<T*>(a.x) + place * D;
  job.u = ints[kDu] >= 0 ? slots + ints[kDu] * a.pool * D : nullptr;
  job.v = ints[kDv] >= 0 ? slots + ints[kDv] * a.pool * D : nullptr;
  find_operands(job, row, reads, static_cast<const T*>(slots), a.pool * D);
  find_model(job, row, ints, reads);
  job.known_reads = a.mask && a.known ? static_cast<uint32_t>(ints[kKnownReads]) : 0;
  job.blend = job.known_reads != 0;
  job.known_coef = row + d.ky();
  job.mask = job.blend ? static_cast<const T*>(a.mask) + b * a.mask_batch_stride : nullptr;
  job.known = job.blend ? static_cast<const T*>(a.known) + b * a.known_batch_stride : nullptr;
  job.need_noise = static_cast<uint32_t>(reads >> d.noise(0)) | job.known_reads >> 1;
  job.seed = a.seed ? a.seed[b] : static_cast<uint64_t>(b);
  for (int l = 0; l < d.L; ++l) job.ids[l] = static_cast<uint32_t>(ints[kIds + l]);
  job.dx = row[d.dx()];
  job.dm = row[d.dx() + 1];
  job.c = row[d.c()];
}

}  // namespace
}  // namespace fs
