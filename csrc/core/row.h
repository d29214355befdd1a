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

#include "hd.h"

namespace fs {

struct Dims {
  int S, G, L, K, E;

  FS_HD constexpr int W() const { return 3 + S + G + L; }
  FS_HD constexpr int floats() const { return clip() + 1 + G + G * K + (1 + L) + 1 + E + 4; }
  FS_HD constexpr int ints() const { return 7 + L; }

  // Columns of M. x is column 0, slot s is column 1 + s.
  FS_HD constexpr int slot(int s) const { return 1 + s; }
  FS_HD constexpr int m() const { return 1 + S; }
  FS_HD constexpr int f() const { return 2 + S; }
  FS_HD constexpr int branch(int g) const { return 3 + S + g; }
  FS_HD constexpr int noise(int l) const { return 3 + S + G + l; }

  // Offsets into the float record. M starts it.
  FS_HD constexpr int p() const { return 3 * W(); }
  FS_HD constexpr int q() const { return p() + 1; }
  FS_HD constexpr int clip() const { return p() + 2; }
  FS_HD constexpr int U() const { return p() + 3; }
  FS_HD constexpr int V() const { return U() + G; }
  FS_HD constexpr int ky() const { return V() + G * K; }
  FS_HD constexpr int c() const { return ky() + 1 + L; }
  FS_HD constexpr int t() const { return c() + 1; }
  FS_HD constexpr int dx() const { return t() + E; }
  FS_HD constexpr int alpha() const { return dx() + 2; }
};

// Offsets into the int record.
enum RowInt { kReadsLow, kReadsHigh, kBranches, kKnownReads, kDu, kDv, kCall, kIds };
constexpr int kReadsSplit = 24;

namespace {

FS_HD inline uint64_t join_reads(int32_t low, int32_t high) {
  return static_cast<uint64_t>(static_cast<uint32_t>(low)) |
         (static_cast<uint64_t>(static_cast<uint32_t>(high)) << kReadsSplit);
}

FS_HD constexpr uint64_t low_bits(int n) { return n >= 64 ? ~uint64_t{0} : (uint64_t{1} << n) - 1; }

inline void split_reads(uint64_t reads, int32_t* ints) {
  ints[kReadsLow] = static_cast<int32_t>(reads & low_bits(kReadsSplit));
  ints[kReadsHigh] = static_cast<int32_t>(reads >> kReadsSplit);
}

// What a row touches: its int record without call and ids.
struct Structure {
  uint64_t reads;
  uint32_t branches, known_reads;
  int32_t du, dv;
};

FS_HD inline Structure structure_of(const int32_t* ints) {
  return {join_reads(ints[kReadsLow], ints[kReadsHigh]), static_cast<uint32_t>(ints[kBranches]),
          static_cast<uint32_t>(ints[kKnownReads]), ints[kDu], ints[kDv]};
}

// True when all of it stays inside the dims: what a kernel needs to know before it follows it.
FS_HD inline bool row_in_range(const Dims& d, const Structure& s) {
  const bool masks = (s.reads & ~low_bits(d.W())) == 0 && (s.branches & ~low_bits(d.G)) == 0 &&
                     (s.known_reads & ~low_bits(1 + d.L)) == 0;
  const bool writes = s.du >= -1 && s.du < d.S && s.dv >= -1 && s.dv < d.S;
  return masks && writes && (s.du < 0 || s.du != s.dv);
}

// What has to be loaded and formed for a row.
struct Needs {
  bool m, f;        // the prediction; the mixed output
  uint32_t direct;  // bit g: f_g is an operand
  uint32_t mixed;   // bit g: f_g enters an f that is formed
  uint32_t noises;  // bit l: n_l is an operand or blended
};

FS_HD inline Needs needs_of(const Dims& d, const Structure& s, bool preview, bool blend) {
  const bool m = preview || (s.reads >> d.m() & 1) != 0, f_read = (s.reads >> d.f() & 1) != 0;
  const uint32_t blended = blend ? s.known_reads >> 1 : 0;
  return {m, f_read || (m && s.branches != 0),
          static_cast<uint32_t>(s.reads >> d.branch(0) & low_bits(d.G)),
          m || f_read ? s.branches : 0, static_cast<uint32_t>(s.reads >> d.noise(0)) | blended};
}

}  // namespace
}  // namespace fs
