// One row of one sample with everything looked up: what step.cpp runs over a range of elements.
#pragma once

#include "core/dtype.h"
#include "core/philox.h"
#include "core/sample.h"
#include "kernels.h"

namespace fs {
namespace {

constexpr int kMaxOperands = 3 + FS_MAX_SLOTS + FS_MAX_BRANCHES + FS_MAX_NOISES;

inline int64_t slot_stride(const fs_step_args& a) {
  return a.slot_stride ? a.slot_stride : a.pool * a.elements;
}

template <class T>
struct Job {
  const fs_step_args* args;
  Dims dims;

  // Of the row.
  int64_t row = -1;
  const T* numbers;
  const int32_t* ids;
  Structure structure;
  Needs needs;
  bool blend;
  int operands;
  int column[kMaxOperands];  // those the row reads, in order
  T coef[3][kMaxOperands];   // [output][operand]
  bool (*fused)(const Job&, const T* f, const T* noise, int64_t e, int64_t n) = nullptr;

  // Of the sample.
  int64_t sample;
  const T *x_in, *slots;
  T *out[3], *preview;  // x', u, v; NULL: not written
  T w0p, bound;
  int mixed;  // branches that enter f and are there
  int branch_of[FS_MAX_BRANCHES];
  T weight[FS_MAX_BRANCHES];
  const void* f[FS_MAX_BRANCHES];  // in the model's dtype; NULL where the branch is absent
  Draw draw;                       // but for the noise's id

  const T* slot(int s) const { return slots + s * slot_stride(*args); }
};

// Looks up a row that was checked.
template <class T>
void find_row(Job<T>& job, int64_t row) {
  const fs_step_args& a = *job.args;
  const Dims& d = job.dims;
  const int32_t* ints = a.table_i + row * d.ints();
  job.row = row;
  job.numbers = static_cast<const T*>(a.table_f) + row * d.floats();
  job.ids = ints + kIds;
  job.structure = structure_of(ints);
  job.blend = blends(a, job.structure);
  job.needs = needs_of(d, job.structure, a.preview != nullptr, job.blend);
  job.operands = 0;
  for (int k = 0; k < d.W(); ++k) {
    if ((job.structure.reads >> k & 1) == 0) continue;
    for (int o = 0; o < 3; ++o) job.coef[o][job.operands] = job.numbers[o * d.W() + k];
    job.column[job.operands++] = k;
  }
}

// Looks up sample b for the job's row; its place and branches were checked.
template <class T>
void find_sample(Job<T>& job, int64_t b) {
  const fs_step_args& a = *job.args;
  const Dims& d = job.dims;
  const int64_t D = a.elements, at = place_of(a, b) * D;
  const Structure& s = job.structure;
  T* slots = a.S > 0 ? static_cast<T*>(a.slots) + at : nullptr;
  job.sample = b;
  job.slots = slots;
  job.x_in = static_cast<const T*>(a.x_in ? a.x_in : a.x) + at;
  job.out[0] = static_cast<T*>(a.x_out ? a.x_out : a.x) + at;
  job.out[1] = s.du >= 0 ? slots + s.du * slot_stride(a) : nullptr;
  job.out[2] = s.dv >= 0 ? slots + s.dv * slot_stride(a) : nullptr;
  job.preview = a.preview ? static_cast<T*>(a.preview) + b * D : nullptr;
  job.w0p = state_weight(a, d, job.numbers, b);
  job.bound = a.bound ? static_cast<const T*>(a.bound)[b] : 0;
  job.draw = draw_of(a, b, 0);
  job.mixed = 0;
  for (int g = 0; g < d.G; ++g) {
    const int64_t f_row = branch_row(a, b, g);
    const bool used = ((job.needs.direct | job.needs.mixed) >> g & 1) != 0 && f_row >= 0;
    job.f[g] =
        used ? static_cast<const char*>(a.f[g]) + f_row * D * dtype_size(a.model_dtype) : nullptr;
    if (!used || (job.needs.mixed >> g & 1) == 0) continue;
    job.branch_of[job.mixed] = g;
    job.weight[job.mixed++] = branch_weight(a, d, job.numbers, b, g);
  }
}

}  // namespace
}  // namespace fs
