/* What examples/server.c calls of the CUDA runtime, over the host's memory; C. */
#include <stdlib.h>
#include <string.h>

typedef int cudaError_t;
enum { cudaSuccess = 0, cudaErrorMemoryAllocation = 2, cudaMemcpyDefault = 4 };

static cudaError_t cudaMalloc(void** memory, size_t bytes) {
  *memory = malloc(bytes);
  return *memory ? cudaSuccess : cudaErrorMemoryAllocation;
}

static cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, int kind) {
  (void)kind;
  memcpy(to, from, bytes);
  return cudaSuccess;
}

static const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "out of memory";
}
