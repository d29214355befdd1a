// Which requests wait for a place, and in what order they enter.
#pragma once

#include <vector>

#include "engine/seat.h"

namespace fastsample::inside {

// Some requests: how many there are, and how many branches they have in all.
struct Load {
  int64_t requests = 0, branches = 0;

  void add(const Ticket& ticket) { ++requests, branches += ticket.plan().info().G; }
  void remove(const Ticket& ticket) { --requests, branches -= ticket.plan().info().G; }
};

// What there is room for. branches 0: any number.
struct Room {
  int64_t requests, branches;

  bool has(Load load, const Ticket& more) const {
    load.add(more);
    return load.requests <= requests && (branches == 0 || load.branches <= branches);
  }
};

Load load_of(const std::vector<Ticket>& tickets);  // of those that are not done

class Queue {
 public:
  Queue(Policy policy, int64_t overtakes) : policy_(std::move(policy)), overtakes_(overtakes) {}

  std::vector<Ticket> waiting;  // in order of arrival

  // Three steps of a tick, as Policy has them. look: remember who waits. ask: the policy, about
  // those; what it throws, and std::logic_error where it names others, comes out. enter: those that
  // have room go from the waiting to the running, both in order of arrival. Between the three
  // others may come, and those that are done may leave.
  void look() { seen_ = waiting; }
  void ask(const std::vector<Ticket>& running);
  void enter(const Room& room, std::vector<Ticket>& running);

 private:
  Policy policy_;
  int64_t overtakes_;
  std::vector<Ticket> seen_, named_;

  const Ticket* due() const;
  bool waits(const Ticket& ticket) const;
  void move(Ticket ticket, std::vector<Ticket>& running);
};

}  // namespace fastsample::inside
