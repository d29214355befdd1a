// One row of a plan in memory: where each number stands. fastsample.plan.Plan.table() writes the
// same layout.
//
// floats, WF = 3W + 3 + G + GK + (1+L) + 1 + E + 2 + 2, in this order:
//   M[3][W] (x' row, u row, v row) | p | q | clip | U[G] | V[G][K] | ky, Cy[L] | c | t[E] | dx, dm
//   | alpha, sigma
// ints, WI = 7 + L:
//   reads (bits 0..23) | reads (bits 24..47) | branches | known_reads | du | dv | call | ids[L]
// Operand columns of M, W = 3+S+G+L: x, r_1..r_S, m, f, f_1..f_G, n_1..n_L.
#pragma once

#include <cstdint>

namespace fs {

struct Dims {
  int S, G, L, K, E;

  constexpr int W() const { return 3 + S + G + L; }
  constexpr int floats() const { return clip() + 1 + G + G * K + (1 + L) + 1 + E + 4; }
  constexpr int ints() const { return 7 + L; }

  // Columns of M. x is column 0, slot s is column 1 + s.
  constexpr int slot(int s) const { return 1 + s; }
  constexpr int m() const { return 1 + S; }
  constexpr int f() const { return 2 + S; }
  constexpr int branch(int g) const { return 3 + S + g; }
  constexpr int noise(int l) const { return 3 + S + G + l; }

  // Offsets into the float record. M starts it.
  constexpr int p() const { return 3 * W(); }
  constexpr int q() const { return p() + 1; }
  constexpr int clip() const { return p() + 2; }
  constexpr int U() const { return p() + 3; }
  constexpr int V() const { return U() + G; }
  constexpr int ky() const { return V() + G * K; }
  constexpr int c() const { return ky() + 1 + L; }
  constexpr int t() const { return c() + 1; }
  constexpr int dx() const { return t() + E; }
  constexpr int alpha() const { return dx() + 2; }
};

// Offsets into the int record.
enum RowInt { kReadsLow, kReadsHigh, kBranches, kKnownReads, kDu, kDv, kCall, kIds };
constexpr int kReadsSplit = 24;

inline uint64_t join_reads(int32_t low, int32_t high) {
  return static_cast<uint64_t>(static_cast<uint32_t>(low)) |
         (static_cast<uint64_t>(static_cast<uint32_t>(high)) << kReadsSplit);
}

constexpr uint64_t low_bits(int n) { return n >= 64 ? ~uint64_t{0} : (uint64_t{1} << n) - 1; }

// True when every int of a row stays inside the dims: what a kernel needs to know before it follows
// them.
inline bool row_in_range(const Dims& d, const int32_t* ints) {
  const uint64_t reads = join_reads(ints[kReadsLow], ints[kReadsHigh]);
  const bool masks = (reads & ~low_bits(d.W())) == 0 &&
                     (static_cast<uint32_t>(ints[kBranches]) & ~low_bits(d.G)) == 0 &&
                     (static_cast<uint32_t>(ints[kKnownReads]) & ~low_bits(1 + d.L)) == 0;
  const bool writes = ints[kDu] >= -1 && ints[kDu] < d.S && ints[kDv] >= -1 && ints[kDv] < d.S;
  return masks && writes && (ints[kDu] < 0 || ints[kDu] != ints[kDv]);
}

}  // namespace fs
