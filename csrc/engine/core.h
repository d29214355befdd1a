// What an Engine is: who waits and runs, and the tick.
#pragma once

#include <array>
#include <thread>

#include "engine/budget.h"

namespace fastsample::inside {

// Seconds of the last 64 ticks that asked a model; 0 before the first.
class Pace {
 public:
  void add(double seconds) { last_[static_cast<size_t>(count_++ % 64)] = seconds; }
  double least() const;
  double mean() const;
  void forget() { count_ = 0; }

 private:
  std::array<double, 64> last_{};
  int64_t count_ = 0;

  auto end() const { return last_.begin() + (count_ < 64 ? count_ : 64); }
};

// Three locks, taken in this order: closing_, by whoever opens and closes; ticking_, by whoever
// ticks, for all of a tick; mutex_, for a few instructions. What a user gave is called without
// mutex_.
class Core {
 public:
  Core(std::vector<Model> models, Options options);
  ~Core();

  Ticket submit(Request request);
  bool tick();
  void run();
  void serve();
  bool serving() const;
  void close(bool drain);
  Counts counts() const;

 private:
  const Options options_;
  const std::vector<Model> models_;
  const Room room_;
  const Sizes sizes_;
  const Budget budget_;

  // Under mutex_. The thread that ticks alone changes running_, so that it reads it without.
  mutable std::mutex mutex_;
  std::condition_variable work_;  // there is something to do, or nothing will come
  Queue queue_;
  std::vector<Ticket> running_;  // in order of arrival
  Counts counts_{};
  Pace pace_;
  uint64_t number_ = 0;
  int32_t scalars_ = -1;  // of every plan here, -1 before the first
  Held held_;
  bool closed_ = false, serving_ = false;
  std::exception_ptr dead_;  // what ended the serving thread

  // Under ticking_.
  struct Called {
    int64_t first, rows;  // of the batch
  };
  std::mutex ticking_;
  std::atomic<std::thread::id> ticker_{};
  Table table_;
  Places places_;
  std::vector<Seat*> seats_;  // by place, nullptr where one is free
  std::vector<Ticket> gone_;
  std::vector<Asked> asked_;  // by row of the batch, as askers_
  std::vector<Seat*> askers_;
  std::vector<Called> calls_;             // by model
  std::vector<std::vector<Asked>> last_;  // by model: what its last batch was

  std::mutex closing_;
  std::thread server_;

  // A request comes (core.cpp).
  void check_open() const;
  void check_room(const Ticket& more) const;
  double retry_after(const std::vector<Ticket>& inside, const Ticket& beyond) const;
  double seconds(int64_t rows) const;
  void work();
  void die(std::exception_ptr why);
  void refuse_inside(const char* where) const;

  // A tick (tick.cpp).
  void admit();
  void end_late();
  bool end_late(const std::vector<Ticket>& tickets);
  void leave(std::vector<Ticket>& tickets, std::vector<Ticket>& gone);
  void clear(std::vector<Ticket>& gone);
  void take_places();
  void take_place(Seat& seat);
  void tell_held();
  void step();
  void compose();
  void compose(int64_t model);
  void begin();
  void ask(int64_t model);
  void advance();
  void advance(const Ticket& ticket, bool looked);
  void fail_running();
};

}  // namespace fastsample::inside
