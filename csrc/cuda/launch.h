// How a kernel of this folder is started: on the caller's device and stream, and not waited for.
// What CUDA says against it becomes the call's status and sentence.
#pragma once

#include <cuda_runtime.h>

#include <utility>

#include "core/error.h"

namespace fs {

// Errors of work that was started earlier: any later call of CUDA may return them, and nothing
// clears them.
inline bool is_of_earlier_work(cudaError_t error) {
  switch (error) {
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorECCUncorrectable: return true;
    default: return false;
  }
}

// There is no GPU here, or no driver that fits.
inline bool is_of_machine(cudaError_t error) {
  return error == cudaErrorInsufficientDriver || error == cudaErrorNoDevice ||
         error == cudaErrorStubLibrary;
}

// An error of our own call is said and cleared; one that was pending is said to be that, and stays.
inline void check(const char* where, const char* what, cudaError_t error) {
  if (error == cudaSuccess) return;
  if (is_of_earlier_work(error))
    fail(FS_E_DEVICE, "%s: CUDA reports an error of earlier work: %s (%s); nothing was started",
         where, cudaGetErrorString(error), cudaGetErrorName(error));
  cudaGetLastError();
  fail(FS_E_DEVICE, "%s: CUDA refused %s: %s (%s)", where, what, cudaGetErrorString(error),
       cudaGetErrorName(error));
}

// The device of one call, current while this lives. gpu: 1 + its number, 0 = the current one.
class Call {
 public:
  Call(const char* where, int64_t gpu, void* stream)
      : where_(where), stream_(static_cast<cudaStream_t>(stream)) {
    const cudaError_t pending = cudaPeekAtLastError();
    if (is_of_machine(pending))
      fail(FS_E_UNSUPPORTED, "%s: CUDA cannot be used here: %s (%s); FS_CPU is accepted", where,
           cudaGetErrorString(pending), cudaGetErrorName(pending));
    if (pending != cudaSuccess)
      fail(FS_E_DEVICE,
           "%s: an error of another CUDA call is pending: %s (%s); nothing was started", where,
           cudaGetErrorString(pending), cudaGetErrorName(pending));
    if (gpu == 0) return;
    int current = -1;
    check(where, "to say which device is current", cudaGetDevice(&current));
    const int wanted = static_cast<int>(gpu - 1);
    if (current == wanted) return;
    check(where, "to make the device current", cudaSetDevice(wanted));
    before_ = current;
  }
  ~Call() {
    if (before_ >= 0) cudaSetDevice(before_);
  }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  // One launch; `name` tells in errors, and in tests, which kernel it was.
  template <class... Parameters, class... Arguments>
  void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, int threads,
              const Arguments&... arguments) const {
    cudaLaunchConfig_t config = {};
    config.gridDim = grid, config.blockDim = dim3(static_cast<unsigned>(threads));
    config.stream = stream_;
#ifdef FS_EMULATED
    emulate::count(name);
#endif
    check(where_, name, cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...));
  }

 private:
  const char* where_;
  cudaStream_t stream_;
  int before_ = -1;
};

}  // namespace fs
