// A piece of a device's memory.
#pragma once

#include <memory>
#include <utility>

#include "fastsample/memory.hpp"

namespace fastsample::inside {

class Piece {
 public:
  Piece() = default;
  Piece(std::shared_ptr<Memory> memory, size_t bytes)
      : memory_(std::move(memory)), at_(memory_->take(bytes)), bytes_(bytes) {}
  Piece(Piece&& other) noexcept { swap(other); }
  Piece& operator=(Piece&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Piece() {
    if (at_) memory_->give(at_, bytes_);
  }

  std::byte* at(size_t offset = 0) const noexcept { return static_cast<std::byte*>(at_) + offset; }
  size_t bytes() const noexcept { return bytes_; }

 private:
  std::shared_ptr<Memory> memory_;
  void* at_ = nullptr;
  size_t bytes_ = 0;

  void swap(Piece& other) noexcept {
    std::swap(memory_, other.memory_), std::swap(at_, other.at_), std::swap(bytes_, other.bytes_);
  }
};

}  // namespace fastsample::inside
