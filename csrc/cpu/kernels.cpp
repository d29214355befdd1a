// The table of one instruction set.

#include "kernels.h"

#define FS_TEXT_OF(name) #name
#define FS_TEXT(name) FS_TEXT_OF(name)

namespace fs {
namespace FS_ISA {

bool step(const fs_step_args&, int64_t, int64_t);
void noise(const fs_noise_args&, int64_t, int64_t, int64_t);
void moments(const fs_moments_args&, int64_t, int64_t, int64_t, double*, double*);
void cost_matrix(const fs_cost_args&, int64_t, int64_t, int64_t);
void cost_gather(const fs_cost_args&, int64_t, int64_t, int64_t);
double energy(const void*, int, int64_t);

const CpuKernels kernels = {FS_TEXT(FS_ISA), step,        noise, moments,
                            cost_matrix,     cost_gather, energy};

}  // namespace FS_ISA
}  // namespace fs
