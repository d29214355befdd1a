// Memory that the cases of the C++ Engine count.
#pragma once

#include <new>

#include "engine_cases.h"

// Memory of a device that the host must not touch, as far as a machine without one can tell: copies
// are counted, and what is taken begins as rubbish. far false: the host's own, of which the same is
// counted.
class Apart : public fsp::Memory {
 public:
  explicit Apart(bool far = true) : far_(far) {}

  int64_t copies = 0, waits = 0, taken = 0, takes = 0, left = 1 << 30;
  int64_t bytes = 0, peak = 0;

  int32_t device() const noexcept override { return FS_CPU; }
  bool apart() const noexcept override { return far_; }
  void* take(size_t size) override {
    if ((left -= static_cast<int64_t>(size)) < 0) throw std::bad_alloc();
    ++taken, ++takes, bytes += static_cast<int64_t>(size), peak = std::max(peak, bytes);
    return std::memset(::operator new(size, std::align_val_t{64}), 0x7F, size);
  }
  void give(void* memory, size_t size) noexcept override {
    --taken, bytes -= static_cast<int64_t>(size);
    ::operator delete(memory, std::align_val_t{64});
  }
  void copy(void* to, const void* from, size_t size) override {
    ++copies;
    std::memmove(to, from, size);
  }
  void wait() override { ++waits; }

 private:
  bool far_;
};
