// The memory that an Engine may take, counted before any of it is taken.

#include "engine_apart.h"

namespace {

fsp::Options bounded(const std::shared_ptr<fsp::Memory>& memory, int64_t capacity, int64_t most) {
  fsp::Options own = options(capacity);
  own.preview = true, own.memory = memory, own.max_bytes = most;
  return own;
}

// What stands in a sentence before these words.
int64_t before(const std::string& sentence, const char* words) {
  const size_t end = sentence.find(words), begin = sentence.rfind(' ', end - 1);
  DEMAND(end != std::string::npos);
  return std::atoll(sentence.c_str() + begin + 1);
}

int64_t least(int64_t capacity, bool far) {
  const auto none = [&] {
    fsp::Engine(fsp::Model(denoise), bounded(std::make_shared<Apart>(far), capacity, 1));
  };
  return before(thrown<fsp::Error>(none), " bytes before any request");
}

// Bytes that one request needs, by the sentence of its refusal; with so many it is taken in, and
// with one less it is not.
int64_t needed(const fsp::Request& asked, int64_t capacity, bool far = false) {
  const auto memory = std::make_shared<Apart>(far);
  int64_t most = least(capacity, far);
  const auto refused = [&] {
    fsp::Engine engine(denoise, bounded(memory, capacity, most));
    const std::string said = thrown<fsp::Error>([&] { engine.submit(asked); });
    engine.run();
    DEMAND(said.empty() == (engine.counts().result == 1) && memory->peak <= most);
    return said;
  };
  const int64_t need = before(refused(), " bytes by itself");
  most = need - 1;
  DEMAND(before(refused(), " bytes by itself") == need);
  most = need;
  DEMAND(refused().empty());
  return need;
}

// Of one place more, where all else stays: what is counted is what is taken.
void counted_is_taken(const Plans& plans) {
  const auto taken = [](const fsp::Request& asked, int64_t capacity) {
    const auto memory = std::make_shared<Apart>(false);
    fsp::Engine engine(denoise, bounded(memory, capacity, 0));
    engine.submit(asked);
    engine.tick();
    return memory->bytes;
  };
  for (const char* name : {"unipc", "guided", "inpaint"}) {
    const fsp::Request asked = request(plans.at(name), 1);
    DEMAND((asked.mask != nullptr) == (std::string(name) == "inpaint"));
    for (const int64_t capacity : {1, 67})
      DEMAND(needed(asked, capacity + 1) - needed(asked, capacity) ==
             taken(asked, capacity + 1) - taken(asked, capacity));
  }
  needed(request(plans.at("inpaint"), 1), 5, true);
}

// Plans of every kind come and go, as far as there is room: how many of them. The bound holds
// whatever moves.
size_t admitted(const Mix& mix, int64_t most, bool far) {
  const auto memory = std::make_shared<Apart>(far);
  std::vector<std::pair<size_t, fsp::Ticket>> tickets;
  fsp::Engine engine(std::vector<fsp::Model>{denoise, denoise}, bounded(memory, 6, most));
  for (size_t k = 0; k < mix.requests.size(); ++k) {
    const std::string said =
        thrown<fsp::Error>([&] { tickets.emplace_back(k, engine.submit(mix.requests[k])); });
    DEMAND(said.empty() || says(said, "by itself"));
    if (k % 3 == 0) engine.tick();
  }
  engine.run();
  for (const auto& [k, ticket] : tickets) DEMAND(result(ticket) == mix.want[k]);
  DEMAND(memory->peak <= most);
  return tickets.size();
}

void a_bound_holds(const Mix& mix, bool far) {
  int64_t most = 0;
  for (const fsp::Request& each : mix.requests) most = std::max(most, needed(each, 6, far));
  const size_t few = admitted(mix, most / 2, far), some = admitted(mix, most, far);
  DEMAND(few < some && some < mix.requests.size());
  DEMAND(admitted(mix, 8 * most, far) == mix.requests.size());
}

// Samples that are large beside the rest: one that finds no bytes may come again when others have
// ended.
void full(const Plans& plans) {
  const auto half = [](const fsp::Batch& batch) {
    for (int64_t e = 0; e < batch.rows * batch.elements; ++e)
      static_cast<float*>(batch.out)[e] = 0.5f * static_cast<const float*>(batch.x)[e];
  };
  fsp::Options own = options(2);
  own.elements = 100'000, own.max_bytes = 1;
  const fsp::Request asked(plans.at("unipc"));
  const int64_t sample = own.elements * 4;
  const auto refused = [&] {
    fsp::Engine engine(half, own);
    engine.submit(asked);
  };
  own.max_bytes = before(thrown<fsp::Error>(refused), " bytes before any request");
  own.max_bytes = before(thrown<fsp::Error>(refused), " bytes by itself") + 2 * sample;
  fsp::Engine engine(half, own);
  for (int k = 0; k < 3; ++k) engine.submit(asked);
  const auto again = [&] {
    try {
      engine.submit(asked);
    } catch (const fsp::EngineFull& error) {
      DEMAND(says(error.what(), "bytes are needed; max_bytes"));
      return error.retry_after;
    }
    return 0.0;
  };
  DEMAND(again() == 1.0);  // nothing is known of its pace
  engine.tick(), engine.tick();
  DEMAND(again() > 0 && engine.counts().refused_at_submit == 2);
  engine.run();
  DEMAND(again() == 0 && engine.counts().result == 3);
}

// One that was cancelled while it waited is let go of by the next submit, though that is refused.
void let_go(const Plans& plans) {
  fsp::Request told = request(plans.at("guided"), 1);
  const int64_t most = needed(told, 6);
  const std::weak_ptr<const void> kept = told.conditions[0];
  fsp::Engine engine(denoise, bounded(std::make_shared<Apart>(false), 6, most));
  const fsp::Ticket ticket = engine.submit(std::move(told));
  ticket.cancel();
  DEMAND(!kept.expired());
  const auto larger = [&] { engine.submit(request(plans.at("unipc"), 2)); };
  DEMAND(says(thrown<fsp::Error>(larger), "by itself") && kept.expired());
}

// Large samples that move to larger places, whose old ones stand beside the new ones meanwhile.
void moving(const Plans& plans) {
  const auto zeros = [](const fsp::Batch& batch) {
    std::memset(batch.out, 0, static_cast<size_t>(batch.rows * batch.elements) * 4);
  };
  fsp::Request larger(plans.at("guided"));
  larger.guidance = {2.0};
  const auto moved = [&](int64_t most) {
    const auto memory = std::make_shared<Apart>(false);
    fsp::Options own = options(2);
    own.elements = 100'000, own.memory = memory, own.max_bytes = most;
    fsp::Engine engine(zeros, own);
    engine.submit(fsp::Request(plans.at("unipc")));
    engine.tick();
    const std::string said = thrown<fsp::Error>([&] { engine.submit(larger); });
    engine.run();
    DEMAND(memory->peak <= most);
    return said;
  };
  int64_t most = before(thrown<fsp::Error>([&] { moved(1); }), " bytes before any request");
  most = before(thrown<fsp::Error>([&] { moved(most); }), " bytes by itself");
  most = before(moved(most), " bytes by itself") + 4 * 100'000;  // and the sample of the first
  DEMAND(moved(most).empty());
}

}  // namespace

void try_budget(const Plans& plans) {
  counted_is_taken(plans);
  Plans some;
  for (const char* name : {"unipc", "guided", "inpaint", "dpmpp_2m_sde"})
    some.emplace(name, plans.at(name));
  const Mix mix(some, 40);
  a_bound_holds(mix, false), a_bound_holds(mix, true);
  full(plans);
  moving(plans);
  let_go(plans);
}
