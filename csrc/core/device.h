// The kernels of one device, behind fs_step and its siblings. They get arguments checked as far as
// that needs no look into arrays, which may lie in the device's memory.
#pragma once

#include "fastsample/fastsample.h"

namespace fs {

struct Device {
  void (*step)(const fs_step_args&);
  void (*noise)(const fs_noise_args&);
  void (*moments)(const fs_moments_args&);
  int64_t (*moments_workspace)(const fs_moments_args&);  // bytes, a multiple of 8
  void (*cost_matrix)(const fs_cost_args&);
  int64_t (*cost_workspace)(const fs_cost_args&);
  void (*cost_gather)(const fs_cost_args&);
};

extern const Device cpu_device;
extern const Device cuda_device;  // where FS_CUDA_TEXT is defined: built with CUDA

}  // namespace fs
