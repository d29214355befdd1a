// How many bytes an Engine's places take.
#pragma once

#include "fastsample/engine.hpp"

namespace fastsample::inside {

constexpr size_t kEntry = 4096;  // for the row by which a state is handed in

inline size_t size_of(int32_t dtype) { return dtype == FS_F64 ? 8 : dtype == FS_F32 ? 4 : 2; }

inline size_t times(int64_t count, size_t bytes) { return static_cast<size_t>(count) * bytes; }

// What the size of places depends on: the dims of the plans, and whether some sample has a mask.
struct Shape {
  fs_dims dims = sized<fs_dims>();
  bool some = false;  // there is memory of these dims
  bool masked = false;
};

// Where the words that go to the device stand in their piece.
struct Words {
  size_t seed, scale, t, row, stage, f_index, index, bytes;
};

struct Sizes {
  Sizes(const Options& options, int64_t models);

  const int64_t P, D, most;          // rows of the batch of all models at most; 0: by the dims
  const size_t unit, sample, input;  // bytes of a number, of a state, of a model's input
  const bool apart, preview;
  const size_t step;  // from one slot to the next

  int64_t rows(const fs_dims& dims) const { return most ? most : P * dims.G; }
  Words words(const fs_dims& dims) const;
  size_t state(const fs_dims& dims) const { return step * static_cast<size_t>(1 + dims.S); }
  size_t batch(const fs_dims& dims) const { return times(rows(dims), input); }
  size_t ones(const fs_dims& dims) const {  // for the gather
    return apart ? times(P * rows(dims), sizeof(double)) : 0;
  }

  // All bytes of places: those that stay whatever the dims are, those of these dims, and masks.
  size_t always() const;
  size_t of(const fs_dims& dims) const;
  size_t masks() const { return 2 * times(P, sample); }
};

}  // namespace fastsample::inside
