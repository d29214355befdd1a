// The kernels of this folder, as core/device.h has them.
#pragma once

#include "core/device.h"

namespace fs {

void cuda_step(const fs_step_args&);
void cuda_fill(const fs_noise_args&);
void cuda_moments(const fs_moments_args&);
int64_t cuda_moments_workspace(const fs_moments_args&);
void cuda_cost_matrix(const fs_cost_args&);
int64_t cuda_cost_workspace(const fs_cost_args&);
void cuda_cost_gather(const fs_cost_args&);

}  // namespace fs
