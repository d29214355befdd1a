#include "engine/budget.h"

#include <algorithm>
#include <set>

#include "engine/checks.h"

namespace fastsample::inside {
namespace {

// A table is made anew in copies of its own.
constexpr int64_t kCopies = 3;
constexpr int64_t kLeast = 1024;  // rows of a table

struct Earlier {  // of plans, those with a mask apart
  bool operator()(const Seat* one, const Seat* other) const {
    const auto key = [](const Seat* seat) { return seat->plan.info().sha256; };
    const int order = std::memcmp(key(one), key(other), sizeof(fs_info::sha256));
    return order != 0 ? order < 0 : one->masked < other->masked;
  }
};
using Plans = std::set<const Seat*, Earlier>;

void widen(Shape& shape, const Seat& seat) {
  const fs_dims more = seat.plan.dims();
  fs_dims& own = shape.dims;
  own.S = std::max(own.S, more.S), own.G = std::max(own.G, more.G);
  own.L = std::max(own.L, more.L), own.K = std::max(own.K, more.K);
  own.E = std::max(own.E, more.E);
  shape.some = true, shape.masked = shape.masked || seat.masked;
}

bool same(const Shape& one, const Shape& other) {
  const fs_dims &a = one.dims, &b = other.dims;
  return one.some == other.some && one.masked == other.masked && a.S == b.S && a.G == b.G &&
         a.L == b.L && a.K == b.K && a.E == b.E;
}

std::string number(int64_t value) { return std::to_string(value); }

}  // namespace

Budget::Budget(const Options& options, const Sizes& sizes)
    : most_(options.max_bytes), sizes_(sizes) {
  const auto least = static_cast<int64_t>(sizes_.always());
  if (most_ > 0 && least > most_)
    refuse("Engine: capacity " + number(sizes_.P) + " takes " + number(least) +
           " bytes before any request; max_bytes is " + number(most_));
}

void Budget::check(const Held& held, const std::vector<Ticket>& running,
                   const std::vector<Ticket>& waiting, const Ticket& more,
                   const std::function<double(int64_t)>& seconds) const {
  if (most_ == 0) return;
  std::vector<Ticket> coming(waiting);
  coming.push_back(more);
  const int64_t alone = fixed(held, running, coming) + own(more);
  if (alone > most_)
    refuse("Engine.submit: the request needs " + number(alone) + " bytes by itself; max_bytes, " +
           number(most_) + ", are accepted");
  std::vector<std::pair<int64_t, int64_t>> others;  // rows left, bytes
  int64_t needed = alone;
  for (const auto* tickets : {&running, &waiting}) {
    for (const Ticket& ticket : *tickets) {
      if (ticket.done()) continue;
      others.emplace_back(ticket.left(), own(ticket));
      needed += others.back().second;
    }
  }
  if (needed <= most_) return;
  std::sort(others.begin(), others.end());
  int64_t rows = 1, left = needed;
  for (const auto& [ahead, bytes] : others) {
    if (left <= most_) break;
    rows = std::max(rows, ahead), left -= bytes;
  }
  const double after = seconds(rows);
  throw EngineFull("Engine.submit: with this request " + number(needed) +
                       " bytes are needed; max_bytes, " + number(most_) +
                       ", are accepted, this one again in " + std::to_string(after) + " s",
                   after);
}

// What places and table take until these have entered, beside all before them.
int64_t Budget::fixed(const Held& held, const std::vector<Ticket>& running,
                      const std::vector<Ticket>& coming) const {
  Plans here, come;
  Shape shape = held.shape;
  for (const Ticket& ticket : running) {
    const Seat& seat = Seat::of(ticket);
    (seat.placed ? here : come).insert(&seat);
    widen(shape, seat);
  }
  for (const Ticket& ticket : coming) {
    come.insert(&Seat::of(ticket));
    widen(shape, Seat::of(ticket));
  }
  int64_t rows = 0;
  for (const Seat* seat : come) rows += here.count(seat) ? 0 : seat->plan.info().rows;
  size_t bytes = sizes_.always() + sizes_.of(shape.dims) + (shape.masked ? sizes_.masks() : 0);
  if (held.shape.some && !same(held.shape, shape))  // while samples move
    bytes += sizes_.of(come.size() == 1 ? held.shape.dims : shape.dims);
  return static_cast<int64_t>(bytes) + table(held, shape.dims, rows);
}

// The table with so many more rows, and what it is made from; two stand on a device apart.
int64_t Budget::table(const Held& held, const fs_dims& dims, int64_t more) const {
  const auto bytes = [this](const fs_dims& of, int64_t rows) {
    int64_t floats = 0, ints = 0;
    fastsample::check(fs_table_size(&of, &floats, &ints));
    return rows * (floats * static_cast<int64_t>(sizes_.unit) + ints * 4) + 64;
  };
  const int64_t end = held.end + more;
  const int64_t rows = end <= held.rows ? held.rows : std::max({2 * held.rows, end, kLeast});
  const int64_t after = bytes(dims, rows), there = sizes_.apart ? 2 * after : 0;
  return after + there + (more > 0 && held.rows > 0 ? kCopies * after : 0);
}

// What a request keeps beside its place.
int64_t Budget::own(const Ticket& ticket) const {
  return static_cast<int64_t>(sizes_.sample) * (Seat::of(ticket).masked ? 3 : 1);
}

}  // namespace fastsample::inside
