// The kernels of fs_step, which step.cu chooses from.
#pragma once

#include <cstdint>

#include "fastsample/fastsample.h"

namespace fs {

class Call;

constexpr int64_t kMostGroups = (int64_t{1} << 24) - 1;  // a status word has room for their numbers

// `whole`: every quad of every array may be read and written at once.
// All samples at a row that the host knows; false, and nothing done, for a row of another shape.
bool launch_step_uniform(const fs_step_args&, const Call&, bool whole);
// Any rows.
void launch_step_any(const fs_step_args&, const Call&, bool whole);

}  // namespace fs
