// The commonest steps: all samples at one row that the host knows, so that the host looks up what
// the row touches, and no load of an operand waits for a number of the table. float32 states; the
// row reads x, slots, branches that mix into f, m and at most one noise, drawn in the order that
// numbers lie in, and writes x' and at most one slot; no mask, bound, weights, places or absent
// samples.
#pragma once

#include "core/sample.h"
#include "rules.h"

namespace fs {
namespace {

// A row looked up: where element 0 of sample 0 of each array stands. Numbers of the table are read
// on the device, since a captured launch may run again after others were written there.
struct Uniform {
  int64_t batch, elements;
  const float* x_in;  // NULL = neither read nor needed
  const float* slot[kFormSlots];
  const void* f[kFormBranches];
  float *x, *u, *preview;  // u, preview: NULL = not written
  void* model_input;       // NULL = not written
  int64_t copies;
  const float *number, *scale, *noise_scale;  // scale, noise_scale: NULL = none
  const int32_t* id;                          // of the noise; NULL = none
  const uint64_t* seed;                       // NULL = the sample's number
  const uint32_t* stage;                      // NULL = 0
  float* t_out;                               // NULL = not written
  int32_t* status;                            // NULL = not written
  int32_t not_finite;                         // its word for such an x'
  int slots, branches;                        // how many are read
  int column[kFormSlots], m, noise;           // of M
  int weight[kFormBranches];                  // g of each branch
  Dims dims;
  bool x_read, m_read, called;
};

// How many operands a row reads; form_of finds kernels by it.
struct Reads {
  int slots, branches;
  bool noise;
};

// Does the launch leave its rows to step_uniform, whatever they read?
inline bool is_uniform(const fs_step_args& a) {
  return a.one_row && a.row_words && a.row_number >= 0 && a.row_number < a.table_rows &&
         a.state_dtype == FS_F32 && a.model_dtype != FS_F64 && a.groups == 1 && !a.place &&
         !a.f_index && !a.weights && !a.bound && !(a.mask && a.known);
}

// Can step_uniform run the row, whose words the host has? Then `reads` says what it reads.
inline bool is_uniform(const fs_step_args& a, const Dims& d, const Structure& s, Reads& reads) {
  if (!row_in_range(d, s) || s.dv >= 0 || (s.reads >> d.f() & 1) != 0) return false;
  const Needs needs = needs_of(d, s, a.preview != nullptr, false);
  if (needs.direct != 0) return false;
  for (int g = 0; g < d.G; ++g) {
    if ((needs.mixed >> g & 1) != 0 && (!a.f[g] || a.batch > a.outputs)) return false;
  }
  for (int l = 0; l < d.L; ++l) {
    if ((needs.noises >> l & 1) != 0 && (a.noise[l] || a.channels > 1)) return false;
  }
  const auto count = [](uint64_t bits) { return __builtin_popcountll(bits); };
  reads = {count(s.reads >> 1 & low_bits(d.S)), count(needs.mixed), needs.noises != 0};
  return count(needs.noises) <= 1;
}

// The first form with room for the row; NULL = none has.
inline const Form* form_of(const Reads& reads) {
  for (const Form& form : kForms) {
    if (reads.slots <= form.slots && reads.branches <= form.branches && reads.noise <= form.noise)
      return &form;
  }
  return nullptr;
}

inline void find_operands(const fs_step_args& a, const Structure& s, Uniform& row) {
  const Dims& d = row.dims;
  const Needs needs = needs_of(d, s, a.preview != nullptr, false);
  const int64_t stride = a.slot_stride ? a.slot_stride : a.pool * a.elements;
  float* slots = static_cast<float*>(a.slots);
  for (int k = 0; k < d.S; ++k) {
    if ((s.reads >> d.slot(k) & 1) == 0) continue;
    row.slot[row.slots] = slots + k * stride;
    row.column[row.slots++] = d.slot(k);
  }
  for (int g = 0; g < d.G; ++g) {
    if ((needs.mixed >> g & 1) == 0) continue;
    row.f[row.branches] = a.f[g];
    row.weight[row.branches++] = g;
  }
  for (int l = 0; l < d.L; ++l) {
    if ((needs.noises >> l & 1) == 0) continue;
    row.id = a.table_i + int64_t{a.row_number} * d.ints() + kIds + l;
    row.noise = d.noise(l);
  }
  row.x_read = (s.reads & 1) != 0, row.m_read = (s.reads >> d.m() & 1) != 0;
  row.called = s.branches != 0, row.m = d.m();
  const void* x_in = a.x_in ? a.x_in : a.x;
  row.x_in = row.x_read || needs.m ? static_cast<const float*>(x_in) : nullptr;
  row.u = s.du >= 0 ? slots + s.du * stride : nullptr;
}

inline Uniform find_row(const fs_step_args& a, const Dims& d, const Structure& s) {
  Uniform row = {};
  row.dims = d;
  row.batch = a.batch, row.elements = a.elements, row.copies = a.copies;
  find_operands(a, s, row);
  row.x = static_cast<float*>(a.x_out ? a.x_out : a.x);
  row.preview = static_cast<float*>(a.preview), row.model_input = a.model_input;
  row.number = static_cast<const float*>(a.table_f) + int64_t{a.row_number} * d.floats();
  row.scale = static_cast<const float*>(a.scale);
  row.noise_scale = static_cast<const float*>(a.noise_scale);
  row.seed = a.seed, row.stage = a.stage;
  row.t_out = static_cast<float*>(a.t_out);  // times are no wider than states
  row.status = a.status, row.not_finite = status_word(FS_NOT_FINITE, a.row_number);
  return row;
}

}  // namespace
}  // namespace fs
