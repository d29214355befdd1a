// A plan's rows as the table the kernels read, padded to the dims of a pool.

#include <cmath>
#include <string>
#include <vector>

#include "error.h"
#include "plan.h"

namespace fs {
namespace {

// Where each operand column of a plan stands under the wider dims: slots, branches and noises keep
// their numbers.
std::vector<int> moved_columns(const Dims& from, const Dims& to) {
  std::vector<int> to_column(from.W());
  to_column[0] = 0;
  for (int s = 0; s < from.S; ++s) to_column[from.slot(s)] = to.slot(s);
  to_column[from.m()] = to.m();
  to_column[from.f()] = to.f();
  for (int g = 0; g < from.G; ++g) to_column[from.branch(g)] = to.branch(g);
  for (int l = 0; l < from.L; ++l) to_column[from.noise(l)] = to.noise(l);
  return to_column;
}

// Where each float of a record stands under the wider dims.
std::vector<int> moved_floats(const Dims& from, const Dims& to) {
  std::vector<int> at(from.floats());
  const std::vector<int> column = moved_columns(from, to);
  for (int o = 0; o < 3; ++o) {
    for (int k = 0; k < from.W(); ++k) at[o * from.W() + k] = o * to.W() + column[k];
  }
  for (int k = 0; k < 3; ++k) at[from.p() + k] = to.p() + k;  // p, q, clip
  for (int g = 0; g < from.G; ++g) at[from.U() + g] = to.U() + g;
  for (int g = 0; g < from.G; ++g) {
    for (int s = 0; s < from.K; ++s) at[from.V() + g * from.K + s] = to.V() + g * to.K + s;
  }
  for (int l = 0; l <= from.L; ++l) at[from.ky() + l] = to.ky() + l;
  at[from.c()] = to.c();
  for (int e = 0; e < from.E; ++e) at[from.t() + e] = to.t() + e;
  for (int k = 0; k < 4; ++k) at[from.dx() + k] = to.dx() + k;  // dx, dm, alpha, sigma
  return at;
}

void pack_ints(const Dims& from, const Dims& to, const std::vector<int>& column, const int32_t* in,
               int32_t* out) {
  const uint64_t reads = join_reads(in[kReadsLow], in[kReadsHigh]);
  uint64_t moved = 0;
  for (int k = 0; k < from.W(); ++k) moved |= (reads >> k & 1) << column[k];
  for (int k = kBranches; k < kIds; ++k) out[k] = in[k];
  out[kReadsLow] = static_cast<int32_t>(moved & low_bits(kReadsSplit));
  out[kReadsHigh] = static_cast<int32_t>(moved >> kReadsSplit);
  for (int l = 0; l < to.L; ++l) out[kIds + l] = l < from.L ? in[kIds + l] : -1;
}

}  // namespace

template <class T>
void pack_plan(const Plan& plan, const Dims& wide, T* floats, int32_t* ints) {
  const std::vector<int> column = moved_columns(plan.dims, wide),
                         at = moved_floats(plan.dims, wide);
  for (int i = 0; i < plan.rows; ++i) {
    T* out = floats + static_cast<size_t>(i) * wide.floats();
    for (int k = 0; k < wide.floats(); ++k) out[k] = 0;
    for (int k = 0; k < plan.dims.floats(); ++k) {
      out[at[k]] = static_cast<T>(plan.row_floats(i)[k]);
      if (!std::isfinite(out[at[k]])) {
        throw Error(FS_E_UNSUPPORTED, "fs_plan_pack: row " + std::to_string(i) +
                                          " holds a number beyond float32; pack as FS_F64");
      }
    }
    pack_ints(plan.dims, wide, column, plan.row_ints(i),
              ints + static_cast<size_t>(i) * wide.ints());
  }
}

template void pack_plan<float>(const Plan&, const Dims&, float*, int32_t*);
template void pack_plan<double>(const Plan&, const Dims&, double*, int32_t*);

}  // namespace fs
