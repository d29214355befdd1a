/* What examples/server.c and cuda_memory.hpp call of the CUDA runtime, over the host's memory; C.
 */
#include <stdlib.h>
#include <string.h>

typedef int cudaError_t;
typedef void* cudaStream_t;
enum { cudaSuccess = 0, cudaErrorMemoryAllocation = 2, cudaMemcpyDefault = 4 };

static inline cudaError_t cudaMalloc(void** memory, size_t bytes) {
  *memory = malloc(bytes);
  return *memory ? cudaSuccess : cudaErrorMemoryAllocation;
}

static inline cudaError_t cudaFree(void* memory) {
  free(memory);
  return cudaSuccess;
}

static inline cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, int kind) {
  (void)kind;
  memcpy(to, from, bytes);
  return cudaSuccess;
}

static inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, int kind,
                                          cudaStream_t stream) {
  (void)stream;
  return cudaMemcpy(to, from, bytes, kind);
}

static inline cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  (void)stream;
  return cudaSuccess;
}

static inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

static inline cudaError_t cudaSetDevice(int device) {
  (void)device;
  return cudaSuccess;
}

static inline cudaError_t cudaGetLastError(void) { return cudaSuccess; }

static inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "out of memory";
}
