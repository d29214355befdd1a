#include "engine/core.h"

#include <algorithm>
#include <numeric>

#include "engine/checks.h"

namespace fastsample {
namespace inside {

double Pace::least() const { return count_ ? *std::min_element(last_.begin(), end()) : 0; }

double Pace::mean() const {
  return count_ ? std::accumulate(last_.begin(), end(), 0.0) /
                      static_cast<double>(end() - last_.begin())
                : 0;
}

Core::Core(std::vector<Model> models, Options options)
    : options_(checked(std::move(options), models)),
      models_(std::move(models)),
      room_{options_.capacity, options_.pad_to},
      sizes_(options_, static_cast<int64_t>(models_.size())),
      budget_(options_, sizes_),
      queue_(options_.policy, options_.overtakes),
      table_(options_.state_dtype),
      places_(options_, sizes_),
      seats_(static_cast<size_t>(options_.capacity), nullptr),
      calls_(models_.size()),
      last_(models_.size()) {
  running_.reserve(seats_.size()), gone_.reserve(seats_.size());
}

Core::~Core() { close(false); }

// ---- A request comes ----------------------------------------------------------------------------

void Core::check_open() const {
  if (dead_) throw std::runtime_error("Engine.submit: what a policy threw has ended the Engine");
  if (closed_) throw std::runtime_error("Engine.submit: the Engine is closed");
}

void Core::check_room(const Ticket& more) const {
  Load load = load_of(running_);
  const std::vector<Ticket>& waiting = queue_.waiting;
  const auto enters = [&](const Ticket& ticket) {
    const bool has = room_.has(load, ticket);
    if (has) load.add(ticket);
    return has;
  };
  const auto beyond = std::find_if_not(waiting.begin(), waiting.end(), enters);
  if (beyond == waiting.end() && room_.has(load, more)) return;
  const auto count = static_cast<int64_t>(waiting.end() - beyond) + 1;
  if (count <= options_.waiting) return;
  std::vector<Ticket> inside(waiting.begin(), beyond);
  inside.insert(inside.end(), running_.begin(), running_.end());
  const double seconds = retry_after(inside, beyond == waiting.end() ? more : *beyond);
  throw EngineFull("Engine.submit: there is no room for " + std::to_string(count) +
                       " requests; capacity=" + std::to_string(options_.capacity) +
                       " and pad_to=" + std::to_string(options_.pad_to) +
                       " with waiting=" + std::to_string(options_.waiting) +
                       " are accepted, this one again in " + std::to_string(seconds) + " s",
                   seconds);
}

// Rows until so many of those with room have ended that the first one without has it, times the
// seconds of one.
double Core::retry_after(const std::vector<Ticket>& inside, const Ticket& beyond) const {
  std::vector<Ticket> by_left;
  policy::shortest(inside, {}, by_left);
  Load load = load_of(by_left);
  int64_t rows = 1;
  for (const Ticket& ticket : by_left) {
    if (ticket.done()) continue;
    load.remove(ticket), rows = std::max(rows, ticket.left());
    if (room_.has(load, beyond)) break;
  }
  return seconds(rows);
}

double Core::seconds(int64_t rows) const {
  return pace_.mean() == 0 ? 1 : static_cast<double>(rows) * pace_.mean();
}

Ticket Core::submit(Request request) {
  check_request(request, options_, models_.size());
  const size_t unit = options_.state_dtype == FS_F64 ? sizeof(double) : sizeof(float);
  const int32_t scalars = request.plan.info().E;
  auto seat = std::make_shared<Seat>(std::move(request), options_.elements, unit);
  Ticket ticket = Seat::ticket(seat);
  std::vector<Ticket> gone;
  try {
    const std::lock_guard<std::mutex> lock(mutex_);
    check_open();
    if (scalars_ >= 0 && scalars != scalars_)
      refuse("Engine.submit: the plan tells the model " + std::to_string(scalars) +
             " scalar(s), those before it " + std::to_string(scalars_) +
             "; one number is accepted");
    leave(queue_.waiting, gone);
    try {
      check_room(ticket);
      budget_.check(held_, running_, queue_.waiting, ticket,
                    [this](int64_t rows) { return seconds(rows); });
    } catch (const EngineFull&) {
      ++counts_.refused_at_submit;
      throw;
    }
    scalars_ = scalars;
    seat->number = number_++;
    queue_.waiting.push_back(ticket);
  } catch (...) {
    clear(gone);
    throw;
  }
  work_.notify_one();
  clear(gone);
  return ticket;
}

// ---- Ticks, here or in a thread -----------------------------------------------------------------

void Core::refuse_inside(const char* where) const {
  if (ticker_.load() == std::this_thread::get_id())
    throw std::logic_error(
        std::string(where) +
        ": called by a model, a policy or a callback; between ticks is accepted");
}

void Core::run() {
  while (tick()) continue;
}

void Core::serve() {
  const std::lock_guard<std::mutex> closing(closing_);
  const std::lock_guard<std::mutex> lock(mutex_);
  check_open();
  if (serving_) throw std::runtime_error("Engine.serve: a thread serves it; one is accepted");
  server_ = std::thread([this] { work(); });
  serving_ = true;
}

bool Core::serving() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return serving_;
}

void Core::work() {
  const auto some = [this] { return !queue_.waiting.empty() || !running_.empty(); };
  for (;;) {
    {
      std::unique_lock<std::mutex> lock(mutex_);
      work_.wait(lock, [&] { return closed_ || some(); });
      if (!some()) return void(serving_ = false);
    }
    try {
      tick();
    } catch (...) {
      return die(std::current_exception());
    }
  }
}

void Core::die(std::exception_ptr why) {
  const std::lock_guard<std::mutex> lock(mutex_);
  dead_ = why, serving_ = false;
  for (const auto* tickets : {&queue_.waiting, &running_}) {
    for (const Ticket& ticket : *tickets) Seat::of(ticket).finish(State::failed, why);
  }
}

void Core::close(bool drain) {
  refuse_inside("Engine.close");
  const std::lock_guard<std::mutex> closing(closing_);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
    for (const auto* tickets : {&queue_.waiting, &running_}) {
      for (const Ticket& ticket : *tickets) {
        if (!drain) ticket.cancel();
      }
    }
  }
  work_.notify_all();
  if (server_.joinable()) server_.join();
  run();
}

Counts Core::counts() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  Counts now = counts_;
  now.waiting = load_of(queue_.waiting).requests, now.running = load_of(running_).requests;
  return now;
}

}  // namespace inside

Engine::Engine(std::vector<Model> models, Options options)
    : core_(std::make_unique<inside::Core>(std::move(models), std::move(options))) {}
Engine::Engine(Model model, Options options)
    : Engine(std::vector<Model>{std::move(model)}, std::move(options)) {}
Engine::~Engine() = default;

Ticket Engine::submit(Request request) { return core_->submit(std::move(request)); }
bool Engine::tick() { return core_->tick(); }
void Engine::run() { core_->run(); }
void Engine::serve() { core_->serve(); }
bool Engine::serving() const { return core_->serving(); }
void Engine::close(bool drain) { core_->close(drain); }
Counts Engine::counts() const { return core_->counts(); }

}  // namespace fastsample
