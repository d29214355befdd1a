// fastsample: where an Engine's numbers lie, and how they get there.
#ifndef FASTSAMPLE_MEMORY_HPP
#define FASTSAMPLE_MEMORY_HPP

#include <fastsample/fastsample.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>

namespace fastsample {

// A device's memory. What a subclass throws, the requests concerned end with. An Engine calls it
// from the thread that ticks, and from its own destructor.
class FS_API Memory {
 public:
  Memory() = default;
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  virtual ~Memory() = default;

  virtual int32_t device() const noexcept = 0;               // FS_CPU or FS_CUDA
  virtual int64_t gpu() const noexcept { return 0; }         // as in fs_step_args
  virtual void* stream() const noexcept { return nullptr; }  // in whose order everything happens

  // False: what take() gives is read and written by the host as well.
  virtual bool apart() const noexcept = 0;

  // Room for so many bytes, 1 or more, aligned to 64; the same back, once nothing uses it.
  virtual void* take(size_t bytes) = 0;
  virtual void give(void* memory, size_t bytes) noexcept = 0;

  // Copies in the stream's order, between any two of host and device. The host's side may be
  // written again when it returns; it may be read after wait().
  virtual void copy(void* to, const void* from, size_t bytes) = 0;

  // Returns when all of the stream's work is done.
  virtual void wait() = 0;
};

// The host's memory, for FS_CPU. It begins as zeros.
class FS_API HostMemory : public Memory {
 public:
  int32_t device() const noexcept override { return FS_CPU; }
  bool apart() const noexcept override { return false; }
  void* take(size_t bytes) override {
    return std::memset(::operator new(bytes, std::align_val_t{64}), 0, bytes);
  }
  void give(void* memory, size_t) noexcept override {
    ::operator delete(memory, std::align_val_t{64});
  }
  void copy(void* to, const void* from, size_t bytes) override { std::memmove(to, from, bytes); }
  void wait() override {}
};

}  // namespace fastsample
#endif
