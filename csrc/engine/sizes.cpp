#include "engine/sizes.h"

namespace fastsample::inside {
namespace {

// Bytes modulo 4096 between the state and each slot: a step whose operands all stand at one place
// of a page takes up to half as long again.
constexpr size_t kStagger = 576;

}  // namespace

Sizes::Sizes(const Options& options, int64_t models)
    : P(options.capacity),
      D(options.elements),
      most(options.pad_to * models),
      unit(size_of(options.state_dtype)),
      sample(times(D, unit)),
      input(times(D, size_of(options.model_dtype))),
      apart(options.memory->apart()),
      preview(options.preview),
      step((times(P, sample) + 4095) / 4096 * 4096 + kStagger) {}

Words Sizes::words(const fs_dims& dims) const {
  Words at{};
  const auto next = [&at](int64_t count, size_t bytes) {
    const size_t here = at.bytes;
    at.bytes += times(count, bytes);
    return here;
  };
  at.seed = next(P, 8);
  at.scale = next(P * dims.K, unit), at.t = next(rows(dims) * dims.E, unit);
  at.row = next(P, 4), at.stage = next(P, 4);
  at.f_index = next(dims.G * P, 4), at.index = next(rows(dims), 4);
  return at;
}

size_t Sizes::always() const {
  const size_t read = apart ? 2 * sample + times(P, 4) : 0;  // what the host has read
  return times(P, input) + times(P, 4) + (preview ? times(P, sample) : 0) + read + kEntry;
}

size_t Sizes::of(const fs_dims& dims) const {
  return state(dims) + 2 * batch(dims) + ones(dims) + (apart ? 2 : 1) * words(dims).bytes;
}

}  // namespace fastsample::inside
