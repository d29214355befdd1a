// A plan file (.fsplan), little-endian; fastsample/plan/file.py reads and writes the same:
//
//    0  8 bytes   magic 89 46 53 50 4C 41 4E 0A
//    8  u32 x 2   version = 1, header size = 88
//   16  u32 x 6   R rows, S slots, G branches, L noises, K scales, E model scalars
//   40  u32 x 2   numbers per row (WF + 6 + L, see row.h), 0
//   48  u64       bytes of the note, at most 1 MiB
//   56  32 bytes  SHA-256 of the whole file without these 32 bytes
//   88  R rows of float64: the WF floats of row.h | reads | branches | known_reads | du | dv | call
//   | ids[L]
//    .  the note, strict UTF-8 JSON; the file ends with it
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "row.h"

namespace fs {

struct Plan {
  int rows = 0;
  Dims dims{};
  std::vector<double> floats;  // [rows, dims.floats()]
  std::vector<int32_t> ints;   // [rows, dims.ints()]
  std::vector<uint8_t> entry;  // [rows] 1: a run may start here
  std::array<uint8_t, 32> sha256{};
  std::string note;
  int nfe = 0;

  const double* row_floats(int i) const {
    return floats.data() + static_cast<size_t>(i) * dims.floats();
  }
  const int32_t* row_ints(int i) const {
    return ints.data() + static_cast<size_t>(i) * dims.ints();
  }
  Structure structure(int i) const { return structure_of(row_ints(i)); }
};

// Reads and checks a plan; every size is bounded before anything is allocated. Throws
// Error(FS_E_FORMAT).
Plan parse_plan(const uint8_t* data, size_t size);

// Reads a file whole, at most as long as the longest plan. Throws Error(FS_E_FILE | FS_E_FORMAT).
Plan load_plan(const char* path);

// Writes the rows with dims `wide` >= plan.dims, in T (float | double). Throws
// Error(FS_E_UNSUPPORTED) when a number is beyond T's range.
template <class T>
void pack_plan(const Plan& plan, const Dims& wide, T* floats, int32_t* ints);

}  // namespace fs
