// One tick: who is late ends, who has room enters, each model is asked once, and one launch takes
// everybody a row further.

#include <algorithm>

#include "engine/core.h"

namespace fastsample::inside {
namespace {

// The thread that ticks, while it does.
class Ticker {
 public:
  explicit Ticker(std::atomic<std::thread::id>& id) : id_(id) { id_ = std::this_thread::get_id(); }
  ~Ticker() { id_ = std::thread::id(); }
  Ticker(const Ticker&) = delete;
  Ticker& operator=(const Ticker&) = delete;

 private:
  std::atomic<std::thread::id>& id_;
};

bool same(const Asked& one, const Asked& other) {
  return one.request == other.request && one.branch == other.branch;
}

// Why a sample with this status word ends, of a plan whose row 0 is the table's `first`.
std::exception_ptr fault(int32_t word, int64_t first) {
  const auto bits = static_cast<uint32_t>(word);
  const auto row = static_cast<int64_t>((bits >> 8) - static_cast<uint32_t>(first)) & 0xFFFFFF;
  if (bits & FS_NOT_FINITE)
    return std::make_exception_ptr(
        NotFinite("Ticket.result: the sample became non-finite at row " + std::to_string(row) +
                      " of its plan; look at what the model returned there",
                  row));
  return std::make_exception_ptr(Error(
      FS_E_INTERNAL, "Engine.tick: fs_step left a sample alone, " + std::to_string(bits & 0xFF)));
}

}  // namespace

bool Core::tick() {
  refuse_inside("Engine.tick");
  const std::lock_guard<std::mutex> ticking(ticking_);
  const Ticker ticker(ticker_);
  admit();
  take_places();
  tell_held();
  if (load_of(running_).requests > 0) step();
  bool some = false;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    leave(running_, gone_);
    some = !running_.empty() || !queue_.waiting.empty();
  }
  clear(gone_);
  return some;
}

// ---- Who runs -----------------------------------------------------------------------------------

void Core::admit() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    end_late();
    leave(queue_.waiting, gone_), leave(running_, gone_);
    if (static_cast<int64_t>(running_.size()) < room_.requests) queue_.look();
  }
  clear(gone_);
  queue_.ask(running_);
  const std::lock_guard<std::mutex> lock(mutex_);
  queue_.enter(room_, running_);
}

void Core::end_late() {
  const int64_t before = load_of(running_).requests;
  const bool some = end_late(running_);
  end_late(queue_.waiting);
  // no tick would outdate a slow spell, which would end everybody
  if (some && before > 0 && load_of(running_).requests == 0) pace_.forget();
}

// Did some?
bool Core::end_late(const std::vector<Ticket>& tickets) {
  const double time = now(), least = pace_.least();
  bool some = false;
  for (const Ticket& ticket : tickets) {
    Seat& seat = Seat::of(ticket);
    const double left = seat.due - time;
    if (left >= static_cast<double>(seat.calls_left) * least) continue;
    seat.finish(State::failed,
                std::make_exception_ptr(DeadlineExceeded(
                    "Ticket.result: the deadline " +
                    (left < 0 ? std::string("has passed")
                              : "is in " + std::to_string(left) + " s, and " +
                                    std::to_string(seat.calls_left) + " rows are left to ask") +
                    "; a later one is accepted")));
    some = true;
  }
  return some;
}

// Those that are done go over to the gone. Under mutex_.
void Core::leave(std::vector<Ticket>& tickets, std::vector<Ticket>& gone) {
  auto stays = tickets.begin();
  for (Ticket& ticket : tickets) {
    const State state = ticket.state();
    if (state <= State::running) {
      std::swap(*stays++, ticket);
      continue;
    }
    ++(state == State::result      ? counts_.result
       : state == State::cancelled ? counts_.cancelled
       : state == State::refused   ? counts_.refused
                                   : counts_.failed);
    gone.push_back(ticket);
  }
  tickets.erase(stays, tickets.end());
}

// Their places are free, and what they were given is let go of. Without mutex_.
void Core::clear(std::vector<Ticket>& gone) {
  for (const Ticket& ticket : gone) {
    Seat& seat = Seat::of(ticket);
    if (seat.place >= 0) {
      seats_[static_cast<size_t>(seat.place)] = nullptr;
      table_.remove(seat.plan, seat.masked);
    }
    seat.hand_over();
    seat.request.conditions.clear();
    seat.request.callback = nullptr;
  }
  gone.clear();
}

void Core::take_places() {
  for (const Ticket& ticket : running_) {
    Seat& seat = Seat::of(ticket);
    if (seat.place >= 0 || seat.done()) continue;
    try {
      take_place(seat);
    } catch (...) {
      seat.finish(State::refused, std::current_exception());
    }
  }
}

void Core::take_place(Seat& seat) {
  if (table_.holds(seat.plan, seat.masked)) {
    seat.table_row = table_.add(seat.plan, seat.masked);
  } else {
    Table grown(table_);
    seat.table_row = grown.add(seat.plan, seat.masked);
    places_.fit(grown, seat.masked);  // or the launch goes by the old one
    table_ = std::move(grown);
  }
  const auto free = std::find(seats_.begin(), seats_.end(), nullptr);
  seat.place = free - seats_.begin();
  *free = &seat;
}

// What there is room for by now, for those who submit.
void Core::tell_held() {
  const std::lock_guard<std::mutex> lock(mutex_);
  held_ = {places_.shape(), table_.rows(), table_.end()};
  for (const Ticket& ticket : running_) Seat::of(ticket).placed = true;
}

// ---- The row of everybody -----------------------------------------------------------------------

void Core::step() {
  const double began = now();
  try {
    compose();
    places_.upload();
    begin();
    places_.gather();
    for (int64_t model = 0; model < static_cast<int64_t>(models_.size()); ++model) ask(model);
    places_.launch();
    advance();
  } catch (...) {
    fail_running();
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  ++counts_.ticks, ++counts_.launches;
  for (const Called& call : calls_) counts_.calls += call.rows > 0, counts_.rows += call.rows;
  if (places_.rows() > 0) pace_.add(now() - began);
}

void Core::compose() {
  places_.clear(), asked_.clear(), askers_.clear();
  for (const Seat* seat : seats_) {
    if (seat && !seat->done()) places_.put(*seat);
  }
  for (int64_t model = 0; model < static_cast<int64_t>(models_.size()); ++model) compose(model);
}

void Core::compose(int64_t model) {
  const int64_t first = places_.rows();
  const auto row = [&](Seat* seat, int branch) {
    const auto& given = seat->request.conditions;
    const void* condition = given.empty() ? nullptr : given[static_cast<size_t>(branch)].get();
    asked_.push_back({seat->number, branch, condition});
    askers_.push_back(seat);
  };
  for (Seat* seat : seats_) {
    if (!seat || seat->done()) continue;
    const int64_t i = seat->row.load(std::memory_order_relaxed);
    const uint32_t branches = seat->plan.asks(i);
    if (!branches || seat->plan.rows()[static_cast<size_t>(i)].call != model) continue;
    for (int g = 0; g < FS_MAX_BRANCHES; ++g) {
      if ((branches >> g & 1) == 0) continue;
      places_.show(*seat, g);
      row(seat, g);
    }
  }
  while (places_.rows() > first && places_.rows() - first < options_.pad_to) {
    places_.repeat();
    row(askers_.back(), asked_.back().branch);
  }
  calls_[static_cast<size_t>(model)] = {first, places_.rows() - first};
}

void Core::begin() {
  for (Seat* seat : seats_) {
    if (!seat || !seat->fresh) continue;
    seat->fresh = false;
    try {
      places_.begin(*seat);
      seat->forget_mask();
    } catch (...) {
      seat->finish(State::refused, std::current_exception());
    }
  }
}

void Core::ask(int64_t model) {
  const Called call = calls_[static_cast<size_t>(model)];
  if (call.rows == 0) return;
  std::vector<Asked>& last = last_[static_cast<size_t>(model)];
  const auto first = asked_.begin() + call.first, end = first + call.rows;
  Batch batch = places_.batch(call.first, call.rows);
  batch.model = model, batch.asked = &*first;
  batch.changed = !std::equal(first, end, last.begin(), last.end(), same);
  if (batch.changed) last.assign(first, end);
  try {
    models_[static_cast<size_t>(model)](batch);
  } catch (...) {
    for (int64_t k = call.first; k < call.first + call.rows; ++k)
      askers_[static_cast<size_t>(k)]->finish(State::failed, std::current_exception());
  }
}

void Core::advance() {
  bool ends = false;
  for (const Ticket& ticket : running_) {
    Seat& seat = Seat::of(ticket);
    if (seat.done() || ticket.left() > 1) continue;
    places_.copy_state(seat, seat.sample.data());
    ends = true;
  }
  if (ends) places_.look();
  for (const Ticket& ticket : running_) {
    if (!ticket.done()) advance(ticket, ends);
  }
}

// looked: the status words are those of this launch, on any device.
void Core::advance(const Ticket& ticket, bool looked) {
  Seat& seat = Seat::of(ticket);
  const int64_t row = seat.row.load(std::memory_order_relaxed);
  const bool last = row + 1 >= seat.end, asked = seat.plan.asks(row) != 0;
  seat.asked = seat.asked || asked;
  seat.calls_left -= asked;
  seat.row.store(row + 1, std::memory_order_relaxed);
  ++seat.ran;
  if ((looked || !options_.memory->apart()) && (places_.status(seat) & 0xFF) != 0) {
    seat.finish(State::failed, fault(places_.status(seat), seat.table_row));
    return;
  }
  const Request& request = seat.request;
  try {
    if (request.callback && !last && seat.ran % request.every == 0) {
      const void* x0 = seat.asked ? places_.preview(seat) : nullptr;
      request.callback({ticket, row, places_.state(seat), x0});
    }
  } catch (...) {
    seat.finish(State::failed, std::current_exception());
  }
  if (last) seat.finish(State::result);
}

void Core::fail_running() {
  for (const Ticket& ticket : running_)
    Seat::of(ticket).finish(State::failed, std::current_exception());
}

}  // namespace fastsample::inside
