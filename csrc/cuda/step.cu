// fs_step on a GPU: which kernel. One launch, no allocation, no wait; a graph may capture it.
//
//   step_uniform   all samples at one row that the host knows: runs, captured loops
//   step_any       everything else: rows of a row vector, groups, masks, odd addresses, float64,
//                  noise where channels lie last

#include "step.h"

#include "device.h"
#include "launch.h"
#include "quad.h"

namespace fs {
namespace {

// Every quad of every array begins at a multiple of 16 bytes (8 for numbers of 16 bits).
bool is_whole(const fs_step_args& a) {
  if (a.elements % kQuad != 0 || (a.groups > 1 && a.inner % kQuad != 0)) return false;
  const int model = dtype_size(a.model_dtype) == 2 ? kQuadBytes / 2 : kQuadBytes;
  bool whole = is_aligned(a.model_input, model);
  for (int g = 0; g < a.G; ++g) whole = whole && is_aligned(a.f[g], model);
  for (int l = 0; l < a.L; ++l) whole = whole && is_aligned(a.noise[l], kQuadBytes);
  for (const void* array :
       {static_cast<const void*>(a.x), static_cast<const void*>(a.slots), a.x_in,
        static_cast<const void*>(a.x_out), a.mask, a.known, static_cast<const void*>(a.preview)})
    whole = whole && is_aligned(array, kQuadBytes);
  return whole && a.slot_stride % kQuad == 0;
}

}  // namespace

void cuda_step(const fs_step_args& a) {
  const Call call("fs_step", a.gpu, a.stream);
  if (a.batch == 0) return;
  const bool whole = is_whole(a);
  if (!launch_step_uniform(a, call, whole)) launch_step_any(a, call, whole);
}

}  // namespace fs
