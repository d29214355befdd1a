// Who waits, who enters, who is late; ticks in a thread.

#include <thread>

#include "engine_cases.h"

namespace {

using Tickets = std::vector<fsp::Ticket>;

// Requests that write their number when they enter.
class Line {
 public:
  std::vector<int> entered;

  fsp::Request next(const fsp::Plan& plan, int number) {
    fsp::Request made = request(plan, static_cast<uint64_t>(number));
    made.callback = [this, number](const fsp::Progress& now) {
      if (now.row == 0) entered.push_back(number);
    };
    return made;
  }
};

void full(const Plans& plans) {
  const fsp::Plan& plan = plans.at("unipc");
  fsp::Engine engine(denoise, options(2, 1));
  Tickets tickets;
  for (uint64_t k = 0; k < 3; ++k) tickets.push_back(engine.submit(request(plan, k)));
  const auto again = [&] {
    try {
      engine.submit(request(plan, 9));
    } catch (const fsp::EngineFull& error) {
      DEMAND(says(error.what(), "capacity=2") && says(error.what(), "waiting=1"));
      return error.retry_after;
    }
    return -1.0;
  };
  DEMAND(again() == 1.0);  // nothing is known of its pace
  engine.tick(), engine.tick();
  const double more = again();
  engine.tick(), engine.tick(), engine.tick();
  DEMAND(more > 0 && again() > 0 && engine.counts().refused_at_submit == 3);
  tickets[2].cancel();
  DEMAND(engine.submit(request(plan, 9)).state() == fsp::State::waiting);
  DEMAND(again() > 0);
  engine.run();
  DEMAND(engine.counts().result == 3 && engine.counts().cancelled == 1);
}

// Under pad_to branches are counted, too, and nothing passes a head without room.
void head_of_line(const Plans& plans) {
  Line line;
  fsp::Options own = options(8);
  own.pad_to = 3;
  fsp::Engine engine(denoise, own);
  engine.submit(line.next(plans.at("guided"), 0));
  engine.submit(line.next(plans.at("guided"), 1));
  engine.submit(line.next(plans.at("unipc"), 2));
  engine.tick();
  DEMAND((line.entered == std::vector<int>{0}) && engine.counts().waiting == 2);
  engine.run();
  DEMAND((line.entered == std::vector<int>{0, 1, 2}));
}

void shortest(const Plans& plans, int64_t overtakes, const std::vector<int>& want) {
  const fsp::Plan &brief = plans.at("guided"), &longer = plans.at("unipc");
  DEMAND(brief.info().rows < longer.info().rows);
  Line line;
  fsp::Options own = options(1);
  own.policy = fsp::policy::shortest, own.overtakes = overtakes;
  fsp::Engine engine(denoise, own);
  for (int k = 0; k < 6; ++k) engine.submit(line.next(k < 2 ? longer : brief, k));
  engine.run();
  DEMAND(line.entered == want);
}

void grouped(const Plans& plans) {
  const fsp::Plan &high = plans.at("experts"), &low = plans.at("low");
  Line line;
  fsp::Options own = options(2);
  own.policy = fsp::policy::grouped;
  fsp::Engine engine({denoise, denoise}, own);
  engine.submit(line.next(high, 0));
  engine.submit(line.next(low, 1));
  engine.submit(line.next(high, 2));
  engine.tick();
  DEMAND((line.entered == std::vector<int>{0, 2}) && engine.counts().waiting == 1);
  engine.run();
  DEMAND((line.entered == std::vector<int>{0, 2, 1}));
}

void own_policy(const Plans& plans) {
  const fsp::Plan& plan = plans.at("unipc");
  Line line;
  Tickets strangers;
  fsp::Options own = options(2);
  own.policy = [&](const Tickets& waiting, const Tickets&, Tickets& entering) {
    entering.assign(waiting.rbegin(), waiting.rend());
    entering.insert(entering.end(), strangers.begin(), strangers.end());
  };
  fsp::Engine engine(denoise, own);
  Tickets tickets;
  for (int k = 0; k < 4; ++k) tickets.push_back(engine.submit(line.next(plan, k)));
  strangers = {tickets[0]};
  const auto named = [&] { return thrown<std::logic_error>([&] { engine.tick(); }); };
  DEMAND(says(named(), "named request 0") && says(named(), "each once") && line.entered.empty());
  strangers.clear();
  engine.tick();
  DEMAND((line.entered == std::vector<int>{2, 3}));  // in flight they stand as they came
  DEMAND(tickets[0].overtaken() == 2 && tickets[1].overtaken() == 2);
  engine.run();
  DEMAND((line.entered == std::vector<int>{2, 3, 0, 1}));
}

// A place is free when the one that has left it is gone, not when it is done.
void cancelled_by_the_policy(const Plans& plans) {
  Line line;
  fsp::Options own = options(2);
  own.policy = [](const Tickets& waiting, const Tickets& running, Tickets& entering) {
    if (!running.empty()) running[0].cancel();
    entering = waiting;
  };
  fsp::Engine engine(denoise, own);
  for (int k = 0; k < 4; ++k) engine.submit(line.next(plans.at(k == 1 ? "guided" : "unipc"), k));
  engine.run();
  DEMAND((line.entered == std::vector<int>{0, 1, 2, 3}) && engine.counts().cancelled == 2);
}

// A policy that names nobody: they wait while somebody runs, and one at a time enters.
void nobody(const Plans& plans) {
  Line line;
  fsp::Options own = options(2);
  own.policy = [](const Tickets&, const Tickets&, Tickets&) {};
  own.overtakes = 1;
  fsp::Engine engine(denoise, own);
  for (int k = 0; k < 3; ++k) engine.submit(line.next(plans.at("unipc"), k));
  engine.tick(), engine.tick();
  DEMAND((line.entered == std::vector<int>{0}));
  engine.run();
  DEMAND((line.entered == std::vector<int>{0, 1, 2}));
}

void deadlines(const Plans& plans) {
  const fsp::Plan& plan = plans.at("unipc");
  const auto slow = [](const fsp::Batch& batch) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    denoise(batch);
  };
  fsp::Engine engine(slow, options(1));
  fsp::Request late = request(plan, 1), hopeless = request(plan, 2), fine = request(plan, 3);
  late.deadline = 1e-9, fine.deadline = 1e3;
  const fsp::Ticket passed = engine.submit(late), other = engine.submit(fine);
  engine.run();
  const auto why = [](const fsp::Ticket& ticket) {
    return thrown<fsp::DeadlineExceeded>([&] { ticket.result<float>(); });
  };
  DEMAND(passed.state() == fsp::State::failed && says(why(passed), "has passed"));
  DEMAND(result(other) == alone(request(plan, 3)));
  hopeless.deadline = 0.02 * (plan.info().nfe - 1);  // each evaluation takes more than that
  const fsp::Ticket cannot = engine.submit(hopeless);
  engine.tick();
  DEMAND(says(why(cannot), "rows are left to ask") && cannot.row() == 0);
}

// No tick would outdate a slow spell, which would end all who come after it.
void slow_spell(const Plans& plans) {
  int calls = 0;
  const auto model = [&](const fsp::Batch& batch) {
    if (++calls == 1) std::this_thread::sleep_for(std::chrono::milliseconds(200));
    denoise(batch);
  };
  fsp::Engine engine(model, options(1));
  const fsp::Plan& plan = plans.at("unipc");
  for (uint64_t k = 0; k < 3; ++k) {
    fsp::Request asked = request(plan, k);
    asked.deadline = 0.7;
    const fsp::Ticket ticket = engine.submit(asked);
    engine.run();
    DEMAND(ticket.state() == (k == 0 ? fsp::State::failed : fsp::State::result));
  }
}

void threads(const Plans& plans) {
  const fsp::Plan& plan = plans.at("dpmpp_2m_sde");
  std::vector<Floats> want;
  for (uint64_t k = 0; k < 10; ++k) want.push_back(alone(request(plan, k)));
  fsp::Engine engine(denoise, options(4, 1000));
  engine.serve();
  DEMAND(says(thrown<std::runtime_error>([&] { engine.serve(); }), "one is accepted"));
  DEMAND(engine.serving());
  std::vector<std::thread> clients;
  for (int client = 0; client < 4; ++client) {
    clients.emplace_back([&] {
      for (uint64_t k = 0; k < 10; ++k) {
        const fsp::Ticket ticket = engine.submit(request(plan, k));
        if (k % 3 == 0) DEMAND(result(ticket.wait()) == want[k]);
      }
    });
  }
  for (std::thread& client : clients) client.join();
  engine.close();
  DEMAND(engine.counts().result == 40 && !engine.serving());
  const auto closed = [&] { engine.submit(request(plan, 1)); };
  DEMAND(says(thrown<std::runtime_error>(closed), "is closed"));
  engine.close(false);
}

void the_end(const Plans& plans) {
  Tickets tickets;
  {
    fsp::Engine engine(denoise, options(1));
    for (uint64_t k = 0; k < 3; ++k)
      tickets.push_back(engine.submit(request(plans.at("unipc"), k)));
    DEMAND(!tickets[0].wait_for(std::chrono::milliseconds(1)));
    DEMAND(says(thrown<std::logic_error>([&] { tickets[0].result<float>(); }), "row 0 of 7"));
    while (!tickets[0].done()) engine.tick();
  }
  DEMAND(result(tickets[0]) == alone(request(plans.at("unipc"), 0)));
  DEMAND(tickets[1].state() == fsp::State::cancelled && tickets[2].wait_for({}));
  tickets[2].cancel();
}

void dead(const Plans& plans) {
  fsp::Options own = options();
  own.policy = [](const Tickets&, const Tickets&, Tickets&) { throw std::runtime_error("lost"); };
  fsp::Engine engine(denoise, own);
  const auto submit = [&] { return engine.submit(request(plans.at("unipc"), 1)); };
  DEMAND(submit().done() == false);
  engine.serve();
  while (engine.serving()) std::this_thread::yield();
  DEMAND(says(thrown<std::runtime_error>(submit), "has ended the Engine"));
  DEMAND(engine.counts().waiting == 0);
}

}  // namespace

void try_queue(const Plans& plans) {
  full(plans);
  head_of_line(plans);
  shortest(plans, 16, {2, 3, 4, 5, 0, 1});
  shortest(plans, 2, {2, 3, 0, 1, 4, 5});
  shortest(plans, 0, {0, 1, 2, 3, 4, 5});
  grouped(plans);
  own_policy(plans);
  cancelled_by_the_policy(plans);
  nobody(plans);
  deadlines(plans);
  slow_spell(plans);
  threads(plans);
  the_end(plans);
  dead(plans);
}
