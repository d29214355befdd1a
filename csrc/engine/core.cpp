#include "engine/core.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace fastsample {
namespace inside {
namespace {

constexpr int64_t kMost = int64_t{1} << 40;

[[noreturn]] void refuse(const std::string& sentence) { throw Error(FS_E_ARG, sentence); }

void check_range(const char* name, int64_t value, int64_t least, int64_t most) {
  if (value < least || value > most)
    refuse(std::string("Engine: ") + name + " is " + std::to_string(value) + "; " +
           std::to_string(least) + " to " + std::to_string(most) + " is accepted");
}

Options checked(Options options, const std::vector<Model>& models) {
  check_range("elements", options.elements, 1, kMost);
  check_range("capacity", options.capacity, 1, std::min(kMost / options.elements, kMost >> 20));
  check_range("waiting", options.waiting, -1, kMost);
  check_range("pad_to", options.pad_to, 0, kMost >> 20);
  check_range("state_dtype", options.state_dtype, FS_F32, FS_F64);
  check_range("model_dtype", options.model_dtype, FS_F32, FS_BF16);
  check_range("threads", options.threads, 0, kMost >> 20);
  check_range("overtakes", options.overtakes, 0, kMost);
  check_range("models", static_cast<int64_t>(models.size()), 1, kMost);
  for (const Model& model : models) {
    if (!model) refuse("Engine: a model is empty; something to call is accepted");
  }
  if (!options.policy) refuse("Engine: the policy is empty; something to call is accepted");
  if (options.waiting < 0) options.waiting = options.capacity;
  if (!options.memory) options.memory = std::make_shared<HostMemory>();
  return options;
}

// The noise that a request begins with is drawn again by a later row.
bool draws_first_noise(const Plan& plan) {
  const fs_info& info = plan.info();
  for (const fs_row_info& row : plan.rows()) {
    for (int l = 0; l < info.L; ++l) {
      if (row.ids[l] == 0 && (row.reads >> (3 + info.S + info.G + l) & 1) != 0) return true;
    }
  }
  return false;
}

void check_start(const Request& request) {
  const std::string where = "Engine.submit: ";
  const Plan& plan = request.plan;
  const bool image = plan.begins_from_image();
  if (request.noise && request.latent)
    refuse(where + "noise and latent are given; one of them is accepted");
  if (!request.latent) {
    if (image) refuse(where + "the plan begins from an image; it is to be given as latent");
    if (request.start != 0)
      refuse(where + "start is " + std::to_string(request.start) +
             " without a latent; the state at that row is to be given, or start 0");
    if (request.noise && draws_first_noise(plan))
      refuse(where + "noise is given and the plan draws its first noise again; a seed is accepted");
    return;
  }
  const bool there = request.start >= (image ? 0 : 1) && request.start < plan.info().rows;
  if (!there || !plan.rows()[static_cast<size_t>(request.start)].entry)
    refuse(where + "start is " + std::to_string(request.start) +
           ", at which no latent enters this plan; one of its entries" +
           (image ? "" : " after row 0") + " is accepted");
}

}  // namespace

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
      queue_(options_.policy, options_.overtakes),
      table_(options_.state_dtype),
      places_(options_, options_.pad_to * static_cast<int64_t>(models_.size())),
      seats_(static_cast<size_t>(options_.capacity), nullptr),
      calls_(models_.size()),
      last_(models_.size()) {
  running_.reserve(seats_.size()), gone_.reserve(seats_.size());
}

Core::~Core() { close(false); }

// ---- A request comes ----------------------------------------------------------------------------

void Core::check_request(const Request& request) const {
  const std::string where = "Engine.submit: ";
  const Plan& plan = request.plan;
  const fs_info& info = plan.info();
  const auto models = static_cast<int64_t>(models_.size());
  for (const fs_row_info& row : plan.rows()) {
    if (row.call >= models)
      refuse(where + "the plan asks model " + std::to_string(row.call) + " of " +
             std::to_string(models) + "; an Engine of as many models is needed");
  }
  if (options_.pad_to > 0 && info.G > options_.pad_to)
    refuse(where + "the plan has " + std::to_string(info.G) + " branches; pad_to, " +
           std::to_string(options_.pad_to) + ", is accepted");
  const auto finite = [](double scale) { return std::isfinite(scale); };
  if (request.guidance.size() != static_cast<size_t>(info.K) ||
      !std::all_of(request.guidance.begin(), request.guidance.end(), finite))
    refuse(where + std::to_string(request.guidance.size()) + " guidance scale(s) are given; " +
           std::to_string(info.K) + " finite ones are accepted");
  if (!request.conditions.empty() && request.conditions.size() != static_cast<size_t>(info.G))
    refuse(where + std::to_string(request.conditions.size()) + " conditions are given; none, or " +
           std::to_string(info.G) + ", one a branch, are accepted");
  if (request.every < 1 || !(request.deadline > 0))
    refuse(where + "every is " + std::to_string(request.every) + " and deadline " +
           std::to_string(request.deadline) + "; 1 or more, and seconds above 0, are accepted");
  check_start(request);
  Table(options_.state_dtype, 1).add(plan);  // its numbers fit the dtype
}

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
  if (pace_.mean() == 0) return 1;
  std::vector<Ticket> by_left;
  policy::shortest(inside, {}, by_left);
  Load load = load_of(by_left);
  int64_t rows = 1;
  for (const Ticket& ticket : by_left) {
    if (ticket.done()) continue;
    load.remove(ticket), rows = std::max(rows, ticket.left());
    if (room_.has(load, beyond)) break;
  }
  return static_cast<double>(rows) * pace_.mean();
}

Ticket Core::submit(Request request) {
  check_request(request);
  const size_t unit = options_.state_dtype == FS_F64 ? sizeof(double) : sizeof(float);
  const int32_t scalars = request.plan.info().E;
  auto seat = std::make_shared<Seat>(std::move(request), options_.elements, unit);
  Ticket ticket = Seat::ticket(seat);
  std::vector<Ticket> gone;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    check_open();
    if (scalars_ >= 0 && scalars != scalars_)
      refuse("Engine.submit: the plan tells the model " + std::to_string(scalars) +
             " scalar(s), those before it " + std::to_string(scalars_) +
             "; one number is accepted");
    leave(queue_.waiting, gone);
    try {
      check_room(ticket);
    } catch (const EngineFull&) {
      ++counts_.refused_at_submit;
      throw;
    }
    scalars_ = scalars;
    seat->number = number_++;
    queue_.waiting.push_back(ticket);
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
