// What goes wrong in one request ends that one, for its own reason, and none other; what is wrong
// at submit() is said there.

#include <limits>
#include <thread>

#include "engine_cases.h"

namespace {

struct Broken : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A time that no clock holds is waited for without an end.
void longest(const Plans& plans) {
  fsp::Engine engine(denoise, options());
  engine.serve();
  const fsp::Ticket ticket = engine.submit(request(plans.at("unipc"), 1));
  DEMAND(ticket.wait_for(std::chrono::nanoseconds::max()) && ticket.done());
}

// A model that throws takes those it was asked for along, with its own exception.
void model_throws(const Plans& plans) {
  const auto high = [](const fsp::Batch& batch) { denoise(batch); };
  const auto low = [](const fsp::Batch&) { throw Broken("no low model"); };
  fsp::Engine engine({high, low}, options());
  const fsp::Ticket plain = engine.submit(request(plans.at("guided"), 1));
  const fsp::Ticket both = engine.submit(request(plans.at("experts"), 2));
  while (!both.done()) engine.tick();
  DEMAND(both.state() == fsp::State::failed && both.plan().rows()[both.row()].call == 1);
  DEMAND(thrown<Broken>([&] { both.result<float>(); }) == "no low model");
  engine.run();
  DEMAND(result(plain) == alone(request(plans.at("guided"), 1)));
  const fsp::Counts counts = engine.counts();
  DEMAND(counts.result == 1 && counts.failed == 1 && counts.running == 0 && counts.waiting == 0);
}

// Newcomers are not asked for in their first tick, so they outlive it.
void model_throws_once(const Plans& plans) {
  bool broken = true;
  const auto model = [&](const fsp::Batch& batch) {
    if (broken) throw Broken("once");
    denoise(batch);
  };
  fsp::Engine engine(model, options());
  const fsp::Ticket first = engine.submit(request(plans.at("unipc"), 1));
  engine.tick();
  const fsp::Ticket second = engine.submit(request(plans.at("unipc"), 2));
  engine.tick();
  broken = false;
  engine.run();
  DEMAND(first.state() == fsp::State::failed);
  DEMAND(result(second) == alone(request(plans.at("unipc"), 2)));
}

void not_finite(const Plans& plans, float bad) {
  const auto model = [&](const fsp::Batch& batch) {
    denoise(batch);
    for (int64_t row = 0; row < batch.rows; ++row) {
      if (batch.asked[row].request == 1 && batch.asked[row].branch == 0)
        static_cast<float*>(batch.out)[row * D + D - 1] = bad;
    }
  };
  fsp::Engine engine(model, options());
  std::vector<fsp::Ticket> tickets;
  for (uint64_t k = 0; k < 3; ++k) tickets.push_back(engine.submit(request(plans.at("guided"), k)));
  engine.run();
  DEMAND(tickets[1].state() == fsp::State::failed);
  int64_t row = -1;
  try {
    tickets[1].result<float>();
  } catch (const fsp::NotFinite& error) {
    row = error.row;
  }
  DEMAND(row == 1);
  for (const uint64_t k : {0, 2})
    DEMAND(result(tickets[k]) == alone(request(plans.at("guided"), k)));
}

// The prediction of the data by row i of a plan without history in it, from the state x before it.
double x0_of(const fsp::Plan& plan, int64_t i, double x, double w) {
  const fs_row_info &row = plan.rows()[static_cast<size_t>(i)],
                    &asked = plan.rows()[static_cast<size_t>(i - 1)];
  const double f = w * (asked.c * x) - 0.1 + 0.001 * asked.t[0];
  return row.dx * x + row.dm * (row.p * x + row.q * f);
}

void callbacks(const Plans& plans) {
  fsp::Options own = options();
  own.preview = true;
  fsp::Engine engine(denoise, own);
  const fsp::Plan& plan = plans.at("dpmpp_2m");
  const int64_t rows = plan.info().rows - 1;
  fsp::Request breaks = request(plan, 1), counts = request(plan, 2), stops = request(plan, 3);
  fsp::Request more = request(plan, 4);
  int64_t every = 0, all = 0;
  Floats before;
  const auto w = std::static_pointer_cast<const float>(more.conditions[0]);
  breaks.callback = [](const fsp::Progress& now) {
    if (now.row == 2) throw Broken("enough");
  };
  counts.every = 4, counts.callback = [&](const fsp::Progress&) { ++every; };
  stops.callback = [](const fsp::Progress& now) {
    if (now.row == 1) now.ticket.cancel();
  };
  std::vector<fsp::Ticket> later;
  more.callback = [&](const fsp::Progress& now) {
    ++all;
    if (now.row == 0) later.push_back(engine.submit(request(plan, 5)));
    const auto *x = static_cast<const float*>(now.x), *x0 = static_cast<const float*>(now.x0);
    DEMAND((x0 != nullptr) == (now.row > 0));
    for (size_t e = 0; x0 && e < D; ++e)
      DEMAND(std::fabs(x0[e] - x0_of(plan, now.row, before[e], *w)) < 1e-5);
    before.assign(x, x + D);
  };
  const fsp::Ticket tickets[] = {engine.submit(breaks), engine.submit(counts), engine.submit(stops),
                                 engine.submit(more)};
  engine.run();
  DEMAND(thrown<Broken>([&] { tickets[0].result<float>(); }) == "enough");
  DEMAND(every == (rows - 1) / 4 && all == rows - 1);
  DEMAND(tickets[2].state() == fsp::State::cancelled);
  DEMAND(says(thrown<std::runtime_error>([&] { tickets[2].result<float>(); }), "cancelled"));
  DEMAND(result(later.at(0)) == alone(request(plan, 5)));
  DEMAND(result(tickets[3]) == alone(request(plan, 4)));
}

// What a batch says of itself: whether it asks of others than the one before.
void company(const Plans& plans) {
  std::vector<int> changed;
  bool broken = false;
  const auto model = [&](const fsp::Batch& batch) {
    changed.push_back(batch.changed);
    if (broken) throw Broken("now");
    denoise(batch);
  };
  fsp::Engine engine(model, options());
  auto condition = std::make_shared<float>(0.5f);
  const std::weak_ptr<float> kept = condition;
  fsp::Request told = request(plans.at("unipc"), 1);
  told.conditions = {std::move(condition)};
  const fsp::Ticket first = engine.submit(std::move(told));
  DEMAND(first.state() == fsp::State::waiting);
  engine.tick();  // row 0 asks for nothing
  DEMAND(first.state() == fsp::State::running && changed.empty() && !kept.expired());
  engine.tick(), engine.tick();
  const fsp::Ticket second = engine.submit(request(plans.at("guided"), 2));
  engine.tick(), engine.tick(), engine.tick();
  DEMAND((changed == std::vector<int>{1, 0, 0, 1, 0}));
  broken = true;
  engine.tick();
  DEMAND(first.done() && second.done() && kept.expired());  // while its ticket is there
  broken = false;
  changed.clear();
  const fsp::Ticket third = engine.submit(request(plans.at("unipc"), 3));
  engine.run();
  DEMAND(changed == std::vector<int>({1, 0, 0, 0, 0, 0}));
}

// A model, a policy and a callback may not tick or close.
void from_inside(const Plans& plans) {
  fsp::Engine* inner = nullptr;
  fsp::Engine engine([&](const fsp::Batch&) { inner->tick(); }, options());
  inner = &engine;
  const fsp::Ticket ticket = engine.submit(request(plans.at("unipc"), 1));
  fsp::Request closes = request(plans.at("unipc"), 2);
  closes.callback = [&](const fsp::Progress&) { engine.close(true); };
  const fsp::Ticket other = engine.submit(closes);
  engine.run();
  const auto why = [](const fsp::Ticket& each) {
    return thrown<std::logic_error>([&] { each.result<float>(); });
  };
  DEMAND(says(why(ticket), "Engine.tick: called by a model"));
  DEMAND(says(why(other), "Engine.close: called by a model"));
}

void refusals(const Plans& plans) {
  const auto refused = [](const fsp::Request& bad, fsp::Options own = options()) {
    fsp::Engine engine(denoise, own);
    try {
      engine.submit(bad);
    } catch (const fsp::Error& error) {
      DEMAND(error.status() == FS_E_ARG || error.status() == FS_E_UNSUPPORTED);
      DEMAND(engine.counts().waiting == 0 && !engine.tick());
      return std::string(error.what());
    }
    return std::string("nothing");
  };
  const Floats z(D, 1.0f);
  const auto spoilt = [&](const char* plan, auto&& spoil) {
    fsp::Request bad = request(plans.at(plan), 1);
    spoil(bad);
    return refused(bad);
  };
  using R = fsp::Request;
  DEMAND(says(spoilt("experts", [](R&) {}), "asks model 1 of 1"));
  DEMAND(says(spoilt("guided", [](R& r) { r.guidance.clear(); }), "0 guidance scale"));
  DEMAND(says(spoilt("guided", [](R& r) { r.guidance = {INFINITY}; }), "1 finite ones"));
  DEMAND(says(spoilt("unipc", [](R& r) { r.guidance = {1.0}; }), "0 finite ones"));
  DEMAND(says(spoilt("guided", [](R& r) { r.conditions.pop_back(); }), "1 conditions"));
  DEMAND(says(spoilt("unipc", [](R& r) { r.every = 0; }), "every is 0"));
  DEMAND(says(spoilt("unipc", [](R& r) { r.deadline = NAN; }), "seconds above 0"));
  DEMAND(says(spoilt("image", [](R&) {}), "begins from an image"));
  DEMAND(says(spoilt("unipc", [](R& r) { r.start = 1; }), "without a latent"));
  DEMAND(says(spoilt("unipc", [&](R& r) { r.latent = z.data(); }), "start is 0, at which"));
  DEMAND(says(spoilt("unipc", [&](R& r) { r.latent = z.data(), r.start = 3; }), "entries"));
  DEMAND(says(spoilt("unipc", [&](R& r) { r.latent = z.data(), r.start = 99; }), "entries"));
  DEMAND(says(spoilt("unipc", [&](R& r) { r.latent = r.noise = z.data(); }), "one of them"));
  DEMAND(says(spoilt("again", [&](R& r) { r.noise = z.data(); }), "draws its first noise again"));
  DEMAND(says(spoilt("large", [](R&) {}), "beyond float32"));
  Floats mask(D, 1.0f), known(D, 0.5f);
  const auto shown = [&](R& r) { r.mask = mask.data(), r.known = known.data(); };
  DEMAND(says(spoilt("inpaint", [&](R& r) { r.mask = nullptr; }), "known is given without mask"));
  DEMAND(says(spoilt("inpaint", [&](R& r) { r.known = nullptr; }), "mask is given without known"));
  DEMAND(says(spoilt("unipc", shown), "no row of the plan blends a known image"));
  mask[3] = 1.5f;
  DEMAND(says(spoilt("inpaint", shown), "mask leaves 0 (sample) to 1"));
  mask[3] = NAN;
  DEMAND(says(spoilt("inpaint", shown), "mask leaves 0 (sample) to 1"));
  mask[3] = 0.0f, known[0] = -INFINITY;
  DEMAND(says(spoilt("inpaint", shown), "known holds a NaN or an infinity"));
  known[0] = 0.0f;
  DEMAND(says(spoilt("inpaint", [&](R& r) { shown(r), r.noise = z.data(); }), "first noise again"));
  fsp::Options narrow = options();
  narrow.pad_to = 1;
  DEMAND(says(refused(request(plans.at("guided"), 1), narrow), "2 branches; pad_to, 1"));
  fsp::Engine engine(denoise, options());
  engine.submit(request(plans.at("unipc"), 1));
  DEMAND(says(thrown<fsp::Error>([&] { engine.submit(request(plans.at("two_times"), 1)); }),
              "2 scalar(s), those before it 1"));
}

// Memory apart from the host's that fails once, in its n-th call from when it is told to.
struct Failing : fsp::HostMemory {
  int left = -1;
  bool apart() const noexcept override { return true; }
  void* take(size_t bytes) override { return once(), fsp::HostMemory::take(bytes); }
  void copy(void* to, const void* from, size_t bytes) override {
    once(), fsp::HostMemory::copy(to, from, bytes);
  }
  void wait() override { once(); }

 private:
  void once() {
    if (left >= 0 && left-- == 0) throw Broken("no memory");
  }
};

// A newcomer with a plan that is new to the Engine, of another size and not, while one runs.
void memory_throws(const Plans& plans) {
  for (const char* name : {"guided", "unipc"}) {
    const Floats want = alone(request(plans.at("unipc"), 1));
    for (int n = 0;; ++n) {
      const auto memory = std::make_shared<Failing>();
      fsp::Options own = options();
      own.memory = memory;
      fsp::Engine engine(denoise, own);
      const fsp::Ticket first = engine.submit(request(plans.at("unipc"), 1));
      engine.tick(), engine.tick();
      const fsp::Ticket second = engine.submit(request(plans.at(name), 2));
      memory->left = n;
      engine.tick();
      const bool failed = memory->left < 0;
      memory->left = -1;
      engine.run();
      DEMAND(first.done() && second.done());
      if (first.state() == fsp::State::result) DEMAND(result(first) == want);
      if (second.state() == fsp::State::result)
        DEMAND(result(second) == alone(request(plans.at(name), 2)));
      if (!failed) break;
    }
  }
}

void bad_options() {
  const auto refused = [](auto&& spoil) {
    fsp::Options own = options();
    spoil(own);
    return thrown<fsp::Error>([&] { fsp::Engine(denoise, own); });
  };
  using O = fsp::Options;
  DEMAND(says(refused([](O& o) { o.elements = 0; }), "elements is 0; 1 to"));
  DEMAND(says(refused([](O& o) { o.capacity = 0; }), "capacity is 0"));
  DEMAND(says(refused([](O& o) { o.elements = int64_t{1} << 41; }), "elements is"));
  DEMAND(says(refused([](O& o) { o.capacity = int64_t{1} << 30; }), "capacity is"));
  DEMAND(says(refused([](O& o) { o.waiting = -2; }), "waiting is -2"));
  DEMAND(says(refused([](O& o) { o.threads = -5; }), "threads is -5"));
  DEMAND(says(refused([](O& o) { o.max_bytes = -1; }), "max_bytes is -1"));
  DEMAND(says(refused([](O& o) { o.state_dtype = FS_F16; }), "state_dtype is 2"));
  DEMAND(says(refused([](O& o) { o.policy = nullptr; }), "policy is empty"));
  DEMAND(says(thrown<fsp::Error>([] { fsp::Engine(fsp::Model(), options()); }), "model is empty"));
}

}  // namespace

void try_faults(const Plans& plans) {
  model_throws(plans);
  model_throws_once(plans);
  not_finite(plans, NAN);
  not_finite(plans, -INFINITY);
  callbacks(plans);
  company(plans);
  from_inside(plans);
  refusals(plans);
  memory_throws(plans);
  longest(plans);
  bad_options();
}
