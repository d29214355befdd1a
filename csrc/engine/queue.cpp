#include "engine/queue.h"

#include <algorithm>

namespace fastsample {
namespace inside {
namespace {

enum Mark { kSeen = 1, kNamed };  // Seat::mark

bool earlier(const Ticket& one, const Ticket& other) { return one.number() < other.number(); }

}  // namespace

Load load_of(const std::vector<Ticket>& tickets) {
  Load load;
  for (const Ticket& ticket : tickets) {
    if (!ticket.done()) load.add(ticket);
  }
  return load;
}

void Queue::ask(const std::vector<Ticket>& running) {
  named_.clear();
  if (seen_.empty()) return;
  for (const Ticket& ticket : seen_) Seat::of(ticket).mark = kSeen;
  policy_(seen_, running, named_);
  for (const Ticket& ticket : named_) {
    int& mark = Seat::of(ticket).mark;
    if (mark != kSeen)
      throw std::logic_error("Engine: the policy named request " + std::to_string(ticket.number()) +
                             ", which does not wait or was named already; tickets of the waiting, "
                             "each once, are accepted");
    mark = kNamed;
  }
  if (running.empty() && named_.empty()) {
    named_.push_back(seen_.front());
    Seat::of(named_.front()).mark = kNamed;
  }
}

void Queue::enter(const Room& room, std::vector<Ticket>& running) {
  if (seen_.empty()) return;
  Load load;  // with those that are done: their places are not free yet
  for (const Ticket& ticket : running) load.add(ticket);
  for (auto head = named_.begin();;) {
    while (head != named_.end() && !waits(*head)) ++head;
    const Ticket* chosen = due();
    if (!chosen && head != named_.end()) chosen = &*head;
    if (!chosen || !room.has(load, *chosen)) break;
    load.add(*chosen);
    move(*chosen, running);
  }
  seen_.clear(), named_.clear();
}

const Ticket* Queue::due() const {
  const auto found = std::find_if(waiting.begin(), waiting.end(), [this](const Ticket& ticket) {
    return ticket.overtaken() >= overtakes_;
  });
  return found == waiting.end() ? nullptr : &*found;
}

// Neither has it entered, nor has it left.
bool Queue::waits(const Ticket& ticket) const {
  const auto at = std::lower_bound(waiting.begin(), waiting.end(), ticket, earlier);
  return at != waiting.end() && at->number() == ticket.number();
}

void Queue::move(Ticket ticket, std::vector<Ticket>& running) {
  const auto at = std::lower_bound(waiting.begin(), waiting.end(), ticket, earlier);
  for (auto other = waiting.begin(); other != at; ++other)
    Seat::of(*other).overtaken.fetch_add(1, std::memory_order_relaxed);
  waiting.erase(at);
  Seat& seat = Seat::of(ticket);
  seat.begin();  // unless it is done, and leaves again
  const auto place = std::upper_bound(running.begin(), running.end(), ticket, earlier);
  running.insert(place, std::move(ticket));
}

}  // namespace inside

namespace policy {

using Tickets = std::vector<Ticket>;

void first(const Tickets& waiting, const Tickets&, Tickets& entering) { entering = waiting; }

void shortest(const Tickets& waiting, const Tickets&, Tickets& entering) {
  entering = waiting;
  std::sort(entering.begin(), entering.end(), [](const Ticket& one, const Ticket& other) {
    return one.left() != other.left() ? one.left() < other.left() : inside::earlier(one, other);
  });
}

void grouped(const Tickets& waiting, const Tickets& running, Tickets& entering) {
  thread_local std::vector<int64_t> counts;  // by model, those that ask none first
  counts.clear();
  const size_t voters = running.empty() ? 1 : running.size();
  for (size_t k = 0; k < voters; ++k) {
    const auto at = static_cast<size_t>((running.empty() ? waiting : running)[k].model() + 1);
    if (counts.size() <= at) counts.resize(at + 1);
    ++counts[at];
  }
  const auto most = std::max_element(counts.begin(), counts.end()) - counts.begin() - 1;
  for (const Ticket& ticket : waiting) {
    if (ticket.model() == most) entering.push_back(ticket);
  }
}

}  // namespace policy
}  // namespace fastsample
