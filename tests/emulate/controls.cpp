// What a test asks of the emulation and sets in it, beside the C interface.

#include "cuda_runtime.h"

#define FS_TEST extern "C" __attribute__((visibility("default")))

// Launches of a kernel so far; NULL = of all.
FS_TEST int64_t fs_emulated_count(const char* name) {
  if (name) return emulate::counts[name];
  int64_t all = 0;
  for (const auto& each : emulate::counts) all += each.second;
  return all;
}

// What reached the runtime so far: launches, copies, waits for a stream, allocations.
FS_TEST void fs_emulated_asked(int64_t* counts) {
  const emulate::Asked& asked = emulate::asked;
  counts[0] = fs_emulated_count(nullptr), counts[1] = asked.copies, counts[2] = asked.waits,
  counts[3] = asked.allocations;
}

// Asks for a number's memory, copies it there and waits.
FS_TEST void fs_emulated_ask() {
  void* memory;
  const double number = 1;
  cudaMallocAsync(&memory, sizeof number, nullptr);
  cudaMemcpyAsync(memory, &number, sizeof number, cudaMemcpyDefault);
  cudaStreamSynchronize(nullptr);
  std::free(memory);
}

// The order of threads and blocks (see cuda_runtime.h), and whether grids are small.
FS_TEST void fs_emulated_order(uint32_t order, int32_t low_caps) {
  emulate::order = order;
  emulate::low_caps = low_caps != 0;
}

// The error that is pending, and the answer to the next launch.
FS_TEST void fs_emulated_errors(int32_t pending, int32_t next) {
  emulate::runtime.last = static_cast<cudaError_t>(pending);
  emulate::runtime.next = static_cast<cudaError_t>(next);
}

FS_TEST int32_t fs_emulated_pending() { return emulate::runtime.last; }

// The device that is current, and the one of the last launch with its stream.
FS_TEST void fs_emulated_where(int32_t* current, int32_t* launched_on, const void** stream) {
  *current = emulate::runtime.device;
  *launched_on = emulate::runtime.launched_on;
  *stream = emulate::runtime.stream;
}
