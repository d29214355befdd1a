// A request inside an Engine: what it asked for, where it stands, and how it ended.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <vector>

#include "fastsample/engine.hpp"

namespace fastsample::inside {

// Seconds of the steady clock.
double now();

struct Seat {
  using Bytes = std::vector<std::byte>;

  Seat(Request given, int64_t elements, size_t number_bytes);

  static Seat& of(const Ticket& ticket) noexcept { return *ticket.seat_; }
  static Ticket ticket(std::shared_ptr<Seat> seat) { return Ticket(std::move(seat)); }

  const Plan plan;
  const size_t unit;    // bytes of a number of the state
  Request request;      // emptied by the thread that ticks, once the seat has left
  uint64_t number = 0;  // in order of arrival
  double due;           // of the steady clock
  const int64_t end;    // the row that holds
  const bool masked;
  Bytes sample;       // what it starts from; then its result
  Bytes mask, known;  // until they stand in its place
  std::atomic<int64_t> row, overtaken{0};
  bool placed = false;  // under the Engine's lock: what it needs has been found room for

  // Of the thread that ticks.
  int64_t place = -1, table_row = -1, calls_left = 0, ran = 0;
  bool fresh = true;   // its memory is to be begun
  bool asked = false;  // some row of it has asked a model
  int mark = 0;        // of the queue, while it lets requests in

  State state() const noexcept { return state_.load(std::memory_order_acquire); }
  bool done() const noexcept { return state() > State::running; }
  int64_t left() const noexcept { return end - row.load(std::memory_order_relaxed); }
  int64_t model() const noexcept;

  // From waiting to running; to one of the ends. False where it is done already.
  bool begin() noexcept { return pass(State::running, nullptr); }
  bool finish(State how, std::exception_ptr why = nullptr) noexcept { return pass(how, why); }

  void forget_mask() noexcept { mask = Bytes(), known = Bytes(); }
  // It has left its Engine, and keeps its result alone.
  void hand_over() noexcept {
    forget_mask();
    if (state() != State::result) sample = Bytes();
  }

  bool wait(const std::chrono::nanoseconds* time);
  std::exception_ptr reason();

 private:
  std::atomic<State> state_{State::waiting};
  std::mutex mutex_;
  std::condition_variable ended_;
  std::exception_ptr reason_;

  bool pass(State next, std::exception_ptr why) noexcept;
};

}  // namespace fastsample::inside
