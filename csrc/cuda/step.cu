// fs_step on a GPU: which kernel. One launch, no allocation, no wait; a graph may capture it.

#include "device.h"
#include "launch.h"
#include "step.h"

namespace fs {

void cuda_step(const fs_step_args& a) {
  const Call call("fs_step", a.gpu, a.stream);
  if (a.batch == 0) return;
  launch_step_any(a, call);
}

}  // namespace fs
