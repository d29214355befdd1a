// A plan's rows as the table the kernels read, padded to the dims of a pool.

#include <algorithm>
#include <cmath>
#include <string>

#include "error.h"
#include "plan.h"

namespace fs {
namespace {

// Runs that stay together under wider dims: copy(own offset, wide offset, numbers).
template <class Copy>
void move_columns(const Dims& own, const Dims& wide, const Copy& copy) {
  copy(0, 0, own.m());                 // x and the slots
  copy(own.m(), wide.m(), 2 + own.G);  // m, f and the branches
  copy(own.noise(0), wide.noise(0), own.L);
}

template <class Copy>
void move_floats(const Dims& own, const Dims& wide, const Copy& copy) {
  for (int o = 0; o < 3; ++o) {
    move_columns(own, wide,
                 [&](int from, int to, int n) { copy(o * own.W() + from, o * wide.W() + to, n); });
  }
  copy(own.p(), wide.p(), 3 + own.G);  // p, q, clip and U
  for (int g = 0; g < own.G; ++g) copy(own.V() + g * own.K, wide.V() + g * wide.K, own.K);
  copy(own.ky(), wide.ky(), 1 + own.L);
  copy(own.c(), wide.c(), 1 + own.E);  // c and t
  copy(own.dx(), wide.dx(), 4);        // dx, dm, alpha, sigma
}

void pack_ints(const Dims& own, const Dims& wide, const int32_t* in, int32_t* out) {
  const uint64_t reads = join_reads(in[kReadsLow], in[kReadsHigh]);
  uint64_t moved = 0;
  move_columns(own, wide,
               [&](int from, int to, int n) { moved |= (reads >> from & low_bits(n)) << to; });
  split_reads(moved, out);
  for (int k = kBranches; k < kIds; ++k) out[k] = in[k];
  for (int l = 0; l < wide.L; ++l) out[kIds + l] = l < own.L ? in[kIds + l] : -1;
}

}  // namespace

template <class T>
void pack_plan(const Plan& plan, const Dims& wide, T* floats, int32_t* ints) {
  for (int i = 0; i < plan.rows; ++i, floats += wide.floats(), ints += wide.ints()) {
    const double* in = plan.row_floats(i);
    std::fill_n(floats, wide.floats(), T{0});
    move_floats(plan.dims, wide, [&](int from, int to, int n) {
      for (int k = 0; k < n; ++k) {
        floats[to + k] = static_cast<T>(in[from + k]);
        if (!std::isfinite(floats[to + k]))
          throw Error(FS_E_UNSUPPORTED, "fs_plan_pack: row " + std::to_string(i) +
                                            " holds a number beyond float32; pack as FS_F64");
      }
    });
    pack_ints(plan.dims, wide, plan.row_ints(i), ints);
  }
}

template void pack_plan<float>(const Plan&, const Dims&, float*, int32_t*);
template void pack_plan<double>(const Plan&, const Dims&, double*, int32_t*);

}  // namespace fs
