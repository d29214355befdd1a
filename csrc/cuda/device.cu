// The table of this folder's kernels.

#include "device.h"

namespace fs {

const Device cuda_device = {
    cuda_step,        cuda_fill,           cuda_moments,    cuda_moments_workspace,
    cuda_cost_matrix, cuda_cost_workspace, cuda_cost_gather};

}  // namespace fs
