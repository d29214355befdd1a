// What csrc/cuda calls of the CUDA runtime, over the emulated machine; see cuda_runtime.h.
#pragma once

using cudaStream_t = void*;

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorStubLibrary = 34,
  cudaErrorInsufficientDriver = 35,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidDevice = 101,
  cudaErrorECCUncorrectable = 214,
  cudaErrorIllegalAddress = 700,
  cudaErrorLaunchTimeout = 702,
  cudaErrorAssert = 710,
  cudaErrorHardwareStackError = 714,
  cudaErrorIllegalInstruction = 715,
  cudaErrorMisalignedAddress = 716,
  cudaErrorInvalidAddressSpace = 717,
  cudaErrorInvalidPc = 718,
  cudaErrorLaunchFailure = 719
};

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  void* attrs;
  unsigned numAttrs;
};

namespace emulate {

constexpr int kDevices = 2;

struct Runtime {
  int device = 0;                  // current
  cudaError_t last = cudaSuccess;  // what cudaGetLastError would say
  cudaError_t next = cudaSuccess;  // answer of the next launch
  int launched_on = -1;            // device of the last launch
  const void* stream = nullptr;    // of the last launch
};

inline Runtime runtime;

// Calls beside launches.
struct Asked {
  int64_t copies = 0, waits = 0, allocations = 0;
};

inline Asked asked;

inline cudaError_t answer(cudaError_t error) {
  if (error != cudaSuccess) runtime.last = error;
  return error;
}

}  // namespace emulate

inline cudaError_t cudaPeekAtLastError() { return emulate::runtime.last; }

inline cudaError_t cudaGetLastError() {
  const cudaError_t error = emulate::runtime.last;
  emulate::runtime.last = cudaSuccess;
  return error;
}

inline cudaError_t cudaGetDevice(int* device) {
  *device = emulate::runtime.device;
  return cudaSuccess;
}

inline cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= emulate::kDevices) return emulate::answer(cudaErrorInvalidDevice);
  emulate::runtime.device = device;
  return cudaSuccess;
}

// What csrc/cuda never calls; here so that a test would see it.
enum cudaMemcpyKind { cudaMemcpyDefault = 4 };

inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                                   cudaStream_t = nullptr) {
  ++emulate::asked.copies;
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}

inline cudaError_t cudaStreamSynchronize(cudaStream_t) {
  ++emulate::asked.waits;
  return cudaSuccess;
}

inline cudaError_t cudaMallocAsync(void** memory, size_t bytes, cudaStream_t) {
  ++emulate::asked.allocations;
  *memory = std::malloc(bytes);
  return cudaSuccess;
}

// CUDA's own sentences have words; here the number stands for them.
inline const char* cudaGetErrorString(cudaError_t error) {
  thread_local char text[32];
  std::snprintf(text, sizeof text, "error %d", static_cast<int>(error));
  return text;
}

inline const char* cudaGetErrorName(cudaError_t) { return "emulated"; }

template <class... Parameters>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Parameters... parameters) {
  const dim3 &grid = config->gridDim, &block = config->blockDim;
  const bool sound = grid.x > 0 && grid.x < 1u << 31 && grid.y > 0 && grid.y < 1u << 16 &&
                     grid.z > 0 && grid.z < 1u << 16 && block.x > 0 &&
                     uint64_t{block.x} * block.y * block.z <= 1024;
  if (!sound) return emulate::answer(cudaErrorInvalidConfiguration);
  if (emulate::runtime.next != cudaSuccess) {
    const cudaError_t error = emulate::runtime.next;
    emulate::runtime.next = cudaSuccess;
    return emulate::answer(error);
  }
  emulate::runtime.launched_on = emulate::runtime.device;
  emulate::runtime.stream = config->stream;
  emulate::run_grid(grid, block, [&] { kernel(parameters...); });
  return cudaSuccess;
}
