// Requests from four threads to an Engine that serves, with cancels, deadlines, models that throw
// or return NaN, callbacks that throw and memory that fails: every ticket ends in one way, for a
// reason it may have, with its own bits if in a result; and memory stays what it was.
//
//   engine_soak <requests> <plan.fsplan>...
#include <unistd.h>

#include <fstream>
#include <thread>

#include "engine_cases.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

namespace {

constexpr int kClients = 4, kPhases = 5, kSeeds = 21;

struct BrokenModel : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct BrokenCallback : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Fails now and then, at first.
class Flaky : public fsp::HostMemory {
 public:
  void* take(size_t bytes) override {
    if (++asked_ > 8 && asked_ < 30 && asked_ % 3 == 0) throw std::bad_alloc();
    return HostMemory::take(bytes);
  }

 private:
  int asked_ = 0;
};

enum Kind { kSound, kNan, kThrows, kCancelled, kLate, kKinds };

struct Given {
  Kind kind;
  size_t plan;
  uint64_t seed;
  fsp::Ticket ticket;
};

class Soak {
 public:
  explicit Soak(std::vector<fsp::Plan> plans) : plans_(std::move(plans)), engine_(models(), own()) {
    for (const fsp::Plan& plan : plans_) {
      for (uint64_t seed = 0; seed < kSeeds; ++seed) want_.push_back(alone(request(plan, seed)));
    }
    engine_.serve();
  }

  // So many requests, all of which have ended and left.
  void phase(int64_t requests) {
    std::vector<std::thread> clients;
    for (int client = 0; client < kClients; ++client)
      clients.emplace_back([=] { serve(requests / kClients, dice_ + client); });
    for (std::thread& client : clients) client.join();
    dice_ += kClients, sent_ += requests / kClients * kClients;
    fsp::Counts now = engine_.counts();
    while (now.result + now.cancelled + now.refused + now.failed != sent_) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      now = engine_.counts();
    }
    DEMAND(now.waiting == 0 && now.running == 0);
  }

  void end() {
    engine_.close(true);
    const fsp::Counts all = engine_.counts();
    DEMAND(all.result == ends_[0] && all.cancelled == ends_[1] && all.refused == ends_[2] &&
           all.failed == ends_[3]);
    for (const auto& count : ends_) DEMAND(count > 0);
    std::printf("%lld results, %lld cancelled, %lld refused, %lld failed, %lld full\n",
                (long long)all.result, (long long)all.cancelled, (long long)all.refused,
                (long long)all.failed, (long long)all.refused_at_submit);
  }

 private:
  std::vector<fsp::Plan> plans_;
  std::vector<Floats> want_;
  std::atomic<int64_t> ends_[4] = {};
  int64_t sent_ = 0;
  unsigned dice_ = 1;
  int64_t calls_ = 0;
  fsp::Engine engine_;

  static fsp::Options own() {
    fsp::Options made = options(16, 40);
    made.policy = fsp::policy::shortest, made.memory = std::make_shared<Flaky>();
    return made;
  }

  std::vector<fsp::Model> models() {
    const fsp::Model model = [this](const fsp::Batch& batch) {
      if (++calls_ % 211 == 0) throw BrokenModel("the model");
      denoise(batch);
    };
    return {model, model};
  }

  fsp::Request make(Kind kind, size_t plan, uint64_t seed) {
    fsp::Request made = request(plans_[plan], seed);
    if (kind == kNan) made.conditions[0] = std::make_shared<float>(NAN);
    if (kind == kLate) made.deadline = 1e-6 * static_cast<double>(1 + seed * seed * seed);
    if (kind == kThrows)
      made.callback = [](const fsp::Progress& now) {
        if (now.row == 2) throw BrokenCallback("the callback");
      };
    return made;
  }

  void serve(int64_t requests, unsigned seed) {
    std::mt19937 dice(seed);
    std::vector<Given> given;
    while (requests > 0) {
      const auto kind = static_cast<Kind>(dice() % 12 < 7 ? 0 : dice() % kKinds);
      const size_t plan = dice() % plans_.size();
      const uint64_t number = dice() % kSeeds;
      try {
        given.push_back({kind, plan, number, engine_.submit(make(kind, plan, number))});
        --requests;
      } catch (const fsp::EngineFull& full) {
        DEMAND(full.retry_after >= 0);
        std::this_thread::yield();
      }
      if (given.empty()) continue;
      const size_t at = dice() % given.size();
      if (given[at].kind == kCancelled) given[at].ticket.cancel();
      if (given.size() < 30) continue;
      settle(given[at]);
      std::swap(given[at], given.back()), given.pop_back();
    }
    for (const Given& each : given) settle(each);
  }

  void settle(const Given& given) {
    const fsp::Ticket& ticket = given.ticket.wait();
    const fsp::State state = ticket.state();
    ++ends_[static_cast<int>(state) - static_cast<int>(fsp::State::result)];
    DEMAND((ticket.reason() != nullptr) == (state >= fsp::State::refused));
    try {
      DEMAND(result(ticket) == want_[given.plan * kSeeds + given.seed]);
      DEMAND(state == fsp::State::result && given.kind != kNan && given.kind != kThrows);
    } catch (const fsp::NotFinite&) {
      DEMAND(state == fsp::State::failed && given.kind == kNan);
    } catch (const fsp::DeadlineExceeded&) {
      DEMAND(state == fsp::State::failed && given.kind == kLate);
    } catch (const BrokenCallback&) {
      DEMAND(state == fsp::State::failed && given.kind == kThrows);
    } catch (const BrokenModel&) {
      DEMAND(state == fsp::State::failed);
    } catch (const std::bad_alloc&) {
      DEMAND(state == fsp::State::refused);
    } catch (const std::runtime_error&) {
      DEMAND(state == fsp::State::cancelled && given.kind == kCancelled);
    }
  }
};

// Resident bytes.
int64_t resident() {
  int64_t all = 0, here = 0;
  std::ifstream("/proc/self/statm") >> all >> here;
  return here * sysconf(_SC_PAGESIZE);
}

int64_t live() { return allocations - frees; }

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return std::fprintf(stderr, "engine_soak: see its first lines\n"), 2;
  std::vector<fsp::Plan> plans;
  for (int k = 2; k < argc; ++k) plans.push_back(fsp::Plan::load(argv[k]));
  Soak soak(plans);
  soak.phase(std::atoll(argv[1]) / kPhases);
  const int64_t before = resident(), kept = live();
  for (int phase = 1; phase < kPhases; ++phase) soak.phase(std::atoll(argv[1]) / kPhases);
  std::printf("%lld allocations live, then %lld; %.1f MB resident, then %.1f\n", (long long)kept,
              (long long)live(), 1e-6 * (double)before, 1e-6 * (double)resident());
  DEMAND(live() == kept);
  DEMAND(kSanitized || resident() - before < 5'000'000);
  soak.end();
  return 0;
}
