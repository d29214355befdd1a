// The memory that an Engine may take, counted before any of it is taken.
#pragma once

#include "engine/places.h"
#include "engine/queue.h"

namespace fastsample::inside {

// What an Engine holds beside its requests, as its submitters may know it. Under Core's mutex_.
struct Held {
  Shape shape;
  int64_t rows = 0, end = 0;  // of the table, and behind the last plan in it
};

class Budget {
 public:
  // most 0: no end. Error where the places alone would pass it.
  Budget(const Options& options, const Sizes& sizes);

  // Error or EngineFull where there is too little for one more request beside these. seconds: how
  // long so many rows take.
  void check(const Held& held, const std::vector<Ticket>& running,
             const std::vector<Ticket>& waiting, const Ticket& more,
             const std::function<double(int64_t)>& seconds) const;

 private:
  const int64_t most_;
  const Sizes sizes_;

  int64_t fixed(const Held& held, const std::vector<Ticket>& running,
                const std::vector<Ticket>& coming) const;
  int64_t table(const Held& held, const fs_dims& dims, int64_t more) const;
  int64_t own(const Ticket& ticket) const;
};

}  // namespace fastsample::inside
