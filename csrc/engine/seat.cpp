#include "engine/seat.h"

namespace fastsample {
namespace inside {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

Seat::Seat(Request given, int64_t elements, size_t number_bytes)
    : plan(given.plan),
      unit(number_bytes),
      request(std::move(given)),
      due(now() + request.deadline),
      end(plan.info().rows - 1),
      masked(request.mask != nullptr),
      sample(static_cast<size_t>(elements) * unit),
      row(request.start) {
  for (int64_t i = request.start; i < end; ++i) calls_left += plan.asks(i) != 0;
  const void* start = request.latent ? request.latent : request.noise;
  if (start) std::memcpy(sample.data(), start, sample.size());
  if (!masked) return;
  const auto* const kept = static_cast<const std::byte*>(request.mask);
  const auto* const shown = static_cast<const std::byte*>(request.known);
  mask.assign(kept, kept + sample.size()), known.assign(shown, shown + sample.size());
}

int64_t Seat::model() const noexcept {
  for (int64_t i = row.load(std::memory_order_relaxed); i < end; ++i) {
    if (plan.asks(i) != 0) return plan.rows()[static_cast<size_t>(i)].call;
  }
  return -1;
}

bool Seat::pass(State next, std::exception_ptr why) noexcept {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (done()) return false;
  reason_ = std::move(why);
  state_.store(next, std::memory_order_release);
  if (done()) ended_.notify_all();
  return true;
}

bool Seat::wait(const std::chrono::nanoseconds* time) {
  std::unique_lock<std::mutex> lock(mutex_);
  const auto there = [this] { return done(); };
  // a time that the clock cannot be asked for is no end
  const auto longest = std::chrono::hours(24 * 365 * 100);
  if (time && *time < longest) return ended_.wait_for(lock, *time, there);
  ended_.wait(lock, there);
  return true;
}

std::exception_ptr Seat::reason() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return reason_;
}

}  // namespace inside

State Ticket::state() const noexcept { return seat_->state(); }
bool Ticket::done() const noexcept { return seat_->done(); }
const Ticket& Ticket::wait() const { return seat_->wait(nullptr), *this; }
bool Ticket::wait_for(std::chrono::nanoseconds time) const { return seat_->wait(&time); }
std::exception_ptr Ticket::reason() const { return seat_->reason(); }
void Ticket::cancel() const { seat_->finish(State::cancelled); }
uint64_t Ticket::number() const noexcept { return seat_->number; }
const Plan& Ticket::plan() const noexcept { return seat_->plan; }
int64_t Ticket::row() const noexcept { return seat_->row.load(std::memory_order_relaxed); }
int64_t Ticket::left() const noexcept { return seat_->left(); }
int64_t Ticket::model() const noexcept { return seat_->model(); }
double Ticket::deadline() const noexcept { return seat_->due; }
int64_t Ticket::overtaken() const noexcept {
  return seat_->overtaken.load(std::memory_order_relaxed);
}

const void* Ticket::sample(size_t unit) const {
  const inside::Seat& seat = *seat_;
  switch (state()) {
    case State::result: break;
    case State::cancelled: throw std::runtime_error("Ticket.result: the request was cancelled");
    case State::refused:
    case State::failed: std::rethrow_exception(reason());
    default:
      throw std::logic_error("Ticket.result: the request is at row " + std::to_string(row()) +
                             " of " + std::to_string(seat.end) + "; wait() comes first");
  }
  if (unit != seat.unit)
    throw std::logic_error("Ticket.result: numbers of " + std::to_string(unit) +
                           " bytes are asked for; the state's have " + std::to_string(seat.unit));
  return seat.sample.data();
}

}  // namespace fastsample
