// The kernels of fs_step, which step.cu chooses from.
#pragma once

#include <cstdint>

#include "fastsample/fastsample.h"

namespace fs {

class Call;

constexpr int64_t kMostGroups = (int64_t{1} << 24) - 1;  // a status word has room for their numbers

// Any row: step_any.cu.
void launch_step_any(const fs_step_args&, const Call&);

}  // namespace fs
