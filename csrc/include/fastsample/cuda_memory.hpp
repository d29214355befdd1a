// fastsample: an NVIDIA GPU's memory for an Engine. Header only; the program that includes it links
// the CUDA runtime (nvcc does, CMake: CUDA::cudart), and a libfastsample that was built with CUDA.
//
//     options.memory = std::make_shared<fastsample::CudaMemory>();
#ifndef FASTSAMPLE_CUDA_MEMORY_HPP
#define FASTSAMPLE_CUDA_MEMORY_HPP

#include <cuda_runtime_api.h>
#include <fastsample/fastsample.hpp>
#include <fastsample/memory.hpp>

namespace fastsample {

// The memory of one GPU, in the order of one stream. Errors: FS_E_MEMORY, FS_E_DEVICE. The GPU that
// is current stays so.
class CudaMemory : public Memory {
 public:
  // gpu: its number, -1: the current one. stream: of that GPU, kept open by the caller; a model's
  // work belongs on it. nullptr: the default one.
  explicit CudaMemory(int gpu = -1, cudaStream_t stream = nullptr) : gpu_(gpu), stream_(stream) {
    if (gpu < 0) check("cudaGetDevice", cudaGetDevice(&gpu_));
  }

  int32_t device() const noexcept override { return FS_CUDA; }
  int64_t gpu() const noexcept override { return 1 + gpu_; }
  void* stream() const noexcept override { return stream_; }
  bool apart() const noexcept override { return true; }

  void* take(size_t bytes) override {
    const Current current(gpu_);
    void* memory = nullptr;
    check("cudaMalloc", cudaMalloc(&memory, bytes));
    return memory;
  }
  void give(void* memory, size_t) noexcept override { cudaFree(memory); }
  // From pageable memory, the only one that an Engine copies from, it is read before this returns.
  void copy(void* to, const void* from, size_t bytes) override {
    const Current current(gpu_);
    check("cudaMemcpyAsync", cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_));
  }
  void wait() override {
    const Current current(gpu_);
    check("cudaStreamSynchronize", cudaStreamSynchronize(stream_));
  }

 private:
  int gpu_;
  cudaStream_t stream_;

  // Makes a GPU the current one, for a while.
  class Current {
   public:
    explicit Current(int gpu) {
      check("cudaGetDevice", cudaGetDevice(&before_));
      if (gpu == before_) return;
      check("cudaSetDevice", cudaSetDevice(gpu));
      changed_ = true;
    }
    ~Current() {
      if (changed_) cudaSetDevice(before_);
    }
    Current(const Current&) = delete;
    Current& operator=(const Current&) = delete;

   private:
    int before_ = 0;
    bool changed_ = false;
  };

  // Errors that can be cleared are: the next launch would find them.
  static void check(const char* where, cudaError_t error) {
    if (error == cudaSuccess) return;
    cudaGetLastError();
    throw Error(error == cudaErrorMemoryAllocation ? FS_E_MEMORY : FS_E_DEVICE,
                std::string("CudaMemory: ") + where + ": " + cudaGetErrorString(error));
  }
};

}  // namespace fastsample
#endif
