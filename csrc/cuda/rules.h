// Which kernel a launch takes and how it is cut, as tables; the reason stands beside each line.
// Registers and loads in flight are those of the compiled kernels (`make ptx`). Nothing here has
// been measured on a GPU yet: block sizes and caps are the first thing to measure.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <iterator>

#include "quad.h"

namespace fs {
namespace {

// What a row may read at most in a form of step_uniform. Registers are held for all of it, so the
// first form that a row fits is its best.
struct Form {
  const char* name;
  int slots, branches;
  bool noise;
};

constexpr Form kForms[] = {
    // Euler, DDIM, DPM++2M, flow: two or three loads a quad, all in flight at once.
    {"step_uniform(1,1,0)", 1, 1, false},
    // UniPC, 3M, Heun, and every one of them guided.
    {"step_uniform(4,2,0)", 4, 2, false},
    // The same with a noise: the normals take 20 registers and most of the issue slots.
    {"step_uniform(4,2,1)", 4, 2, true},
    // Fitted plans: all ten slots in flight at once, which chunks of five do not better.
    {"step_uniform(10,1,0)", 10, 1, false},
    // Fitted plans, guided.
    {"step_uniform(10,2,0)", 10, 2, false},
};
constexpr int kFormSlots = 10, kFormBranches = 2;  // the most of any

// Which accesses of step_any, fill and moments have 16 bytes: those of launches whose samples all
// begin on 16 bytes, so of a multiple of four elements, as every published latent has. In an odd
// size sample b begins b D % 4 numbers off, and its quads (a Philox block, four lanes of a sum) lie
// across two accesses each, by another shift in every sample: its numbers go one by one, rather
// than that every kernel holds both ways and a shift between them.

// Tensors b that a block of moments multiplies with P tensors a. One a: four, 102 registers, so
// nine blocks and 45 KB in flight. More: two; with four, two a take 178 registers, and of five the
// sums alone 160. Who reads the a again finds them in the cache: blocks of a run lie side by side.
__host__ __device__ constexpr int take_of(int P) { return P == 1 ? 4 : 2; }

// Threads of a block, for launches of fewer quads than `below`.
struct ThreadRule {
  int64_t below;
  int threads;
};

constexpr int64_t kProcessors = 132;  // of an H100 or H200; a B200 has 148
constexpr ThreadRule kThreads[] = {
    {kProcessors * 32, 32},  // less than a warp a processor: the more blocks, the more of them work
    {kProcessors * 128, 64},  // two warps a block fill them all sooner than four
    {INT64_MAX, 128},         // 3 to 8 blocks of 60 to 150 registers are resident together
};
constexpr int kMostThreads = 128, kWarp = 32;

struct Caps {
  int64_t blocks, rows;
};

inline Caps caps() {
#ifdef FS_EMULATED
  if (emulate::low_caps) return {7, 2};  // so that small tests too go on from the end of a grid
#endif
  // One wave: as many blocks as are resident together at up to 64 registers. Threads go on to
  // further elements, so that a row is looked up once. CUDA's limit of gridDim.y and z.
  return {kProcessors * 8, 65535};
}

// Splits of a sum over D, for a launch of `blocks` without any and D of so many strips.
inline int64_t splits_of(int64_t blocks, int64_t strips) {
  constexpr int64_t kWaves = 2 * 3;  // two, of the three blocks a processor has at 168 registers
  const int64_t wanted = blocks > 0 ? (kProcessors * kWaves - 1) / blocks + 1 : 1;
  return wanted < strips ? wanted : strips;
}

struct Cut {
  dim3 grid;
  int threads;
};

// `samples` of `elements` numbers: blocks of a sample along x, samples along y.
inline Cut cut_of(int64_t samples, int64_t elements) {
  const int64_t quads = elements == 0 ? 1 : (elements - 1) / kQuad + 1;
  const int64_t rows = samples < caps().rows ? samples : caps().rows;
  const ThreadRule* rule = kThreads;
  while (quads >= rule->below / rows) ++rule;  // no launch has INT64_MAX quads
  const int64_t warps = (quads - 1) / kWarp + 1;
  const int threads =
      warps * kWarp < rule->threads ? static_cast<int>(warps) * kWarp : rule->threads;
  const int64_t blocks = (quads - 1) / threads + 1;
  const int64_t most = caps().blocks > rows ? caps().blocks / rows : 1;
  return {dim3(static_cast<unsigned>(blocks < most ? blocks : most), static_cast<unsigned>(rows)),
          threads};
}

}  // namespace
}  // namespace fs
