// The memory of an Engine: P places, in which samples stand at rows of their own, and the one piece
// of numbers that goes to the device before a launch.
#pragma once

#include <vector>

#include "engine/piece.h"
#include "engine/seat.h"
#include "engine/sizes.h"

namespace fastsample::inside {

class Places {
 public:
  Places(const Options& options, const Sizes& sizes);

  // Goes by this table, which stays where its numbers are; masked: some sample has a mask. What
  // Memory throws comes out, and nothing has changed.
  void fit(const Table& table, bool masked);
  Shape shape() const;

  // A tick. First what the launch goes by, and what the models are shown: clear(), put() for each
  // request, show() for each branch of it that is asked, repeat() to fill a batch up.
  void clear();
  void put(const Seat& seat);
  void show(const Seat& seat, int branch);
  void repeat();
  int64_t rows() const noexcept { return shown_; }
  // Then, in this order:
  void upload();
  void begin(const Seat& seat);                    // the sample of a new request
  void gather();                                   // the models' inputs, in the order shown
  Batch batch(int64_t first, int64_t rows) const;  // but for model, asked and changed
  void launch();

  // Status words, as they were at the last look().
  void look();
  int32_t status(const Seat& seat) const { return read_[static_cast<size_t>(seat.place)]; }
  // Copies of the state and the preview, on the host after wait(); or where they lie, if the host
  // reads it there.
  void copy_state(const Seat& seat, void* to) { memory_->copy(to, x(seat.place), sample_); }
  void wait() { memory_->wait(); }
  const void* state(const Seat& seat);
  const void* preview(const Seat& seat);

 private:
  const std::shared_ptr<Memory> memory_;
  const Sizes sizes_;
  const int64_t P_, D_;
  const int32_t state_dtype_, model_dtype_;
  const size_t unit_, sample_, input_;
  const bool apart_;
  fs_step_args args_;
  Piece state_, inputs_, preview_, status_;  // x and the slots; [P, D] twice; [P]
  Piece mask_, known_;                       // [P, D] each, once some sample has them
  Piece words_, batch_, outputs_, ones_, table_, next_table_;
  Piece entry_;  // a row by which a state is handed in
  Words at_{};
  int64_t shown_ = 0;
  std::vector<std::byte> host_words_, host_sample_;
  std::byte* host_ = nullptr;  // the words, for the host to write
  std::vector<int32_t> host_status_;
  const int32_t* read_ = nullptr;
  bool in_order_ = true;  // the rows shown are those of places that follow one another
  std::vector<std::byte> entry_floats_;
  std::vector<int32_t> entry_ints_;

  std::byte* x(int64_t place) const { return state_.at(static_cast<size_t>(place) * sample_); }
  template <class T>
  T* word(size_t at) const {
    return reinterpret_cast<T*>(host_ + at);
  }
  Piece piece(size_t bytes) const { return Piece(memory_, bytes ? bytes : 1); }
  void put_number(size_t at, int64_t k, double value);
  void grow(const fs_dims& dims);
  void bind();
  void enter(const Seat& seat);
  const void* on_host(std::byte* from, size_t copy);
};

}  // namespace fastsample::inside
