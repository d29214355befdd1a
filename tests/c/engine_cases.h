// What the cases of the C++ Engine share.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fastsample/engine.hpp>
#include <map>
#include <random>

namespace fsp = fastsample;

inline std::atomic<int> checks{0};
inline std::atomic<int64_t> allocations{0}, frees{0};  // by operator new and delete

#define DEMAND(held)                                                          \
  do {                                                                        \
    ++checks;                                                                 \
    if (!(held)) {                                                            \
      std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #held); \
      std::exit(1);                                                           \
    }                                                                         \
  } while (0)

// The plans of the command line by the names of their files.
using Plans = std::map<std::string, fsp::Plan>;
using Floats = std::vector<float>;

inline Plans plans_of(int argc, char** argv) {
  Plans plans;
  for (int k = 1; k < argc; ++k) {
    const std::string path = argv[k];
    const size_t begin = path.find_last_of('/') + 1;
    plans.emplace(path.substr(begin, path.find_last_of('.') - begin), fsp::Plan::load(path));
  }
  return plans;
}

constexpr int64_t D = 61;

inline fsp::Options options(int64_t capacity = 8, int64_t waiting = 200) {
  fsp::Options made;
  made.elements = D, made.capacity = capacity, made.waiting = waiting;
  return made;
}

// A row's condition is a number w, 0.5 without any: out = (w x - 0.1) + 0.001 t, in float32.
inline float weight(const fsp::Asked& asked) {
  return asked.condition ? *static_cast<const float*>(asked.condition) : 0.5f;
}

inline void denoise(const fsp::Batch& batch) {
  const auto* x = static_cast<const float*>(batch.x);
  const auto* t = static_cast<const float*>(batch.t_host);
  auto* out = static_cast<float*>(batch.out);
  for (int64_t row = 0; row < batch.rows; ++row) {
    const float w = weight(batch.asked[row]), shift = 0.001f * t[row * batch.scalars];
    for (int64_t e = row * D; e < (row + 1) * D; ++e) out[e] = (w * x[e] - 0.1f) + shift;
  }
}

// A mask and a known image, of seven kinds.
inline const std::pair<Floats, Floats>& picture(uint64_t seed) {
  static const auto made = [] {
    std::vector<std::pair<Floats, Floats>> all;
    for (int kind = 0; kind < 7; ++kind) {
      Floats mask, known;
      for (int e = 0; e < D; ++e) {
        mask.push_back(e % 3 == kind % 3 ? 1.0f : e % 5 == 0 ? 0.5f : 0.0f);
        known.push_back(0.02f * static_cast<float>(e - kind) - 0.4f);
      }
      all.emplace_back(mask, known);
    }
    return all;
  }();
  return made[seed % 7];
}

inline bool blends(const fsp::Plan& plan) {
  const auto some = [](const fs_row_info& row) { return row.known_reads != 0; };
  return std::any_of(plan.rows().begin(), plan.rows().end(), some);
}

// Of a plan that blends a known image every other seed has one.
inline fsp::Request request(const fsp::Plan& plan, uint64_t seed) {
  fsp::Request made(plan);
  made.seed = seed;
  if (blends(plan) && seed % 2 == 1)
    made.mask = picture(seed).first.data(), made.known = picture(seed).second.data();
  for (int k = 0; k < plan.info().K; ++k) made.guidance.push_back(2.0 + k);
  for (int g = 0; g < plan.info().G; ++g)
    made.conditions.push_back(
        std::make_shared<float>(0.3f + 0.01f * static_cast<float>(seed % 7) + 0.1f * (float)g));
  return made;
}

inline Floats result(const fsp::Ticket& ticket) {
  const float* x = ticket.result<float>();
  return Floats(x, x + D);
}

// What the request gives in an Engine of its own.
inline Floats alone(fsp::Request asked, fsp::Options own = options(1),
                    std::vector<fsp::Model> models = {denoise, denoise}) {
  fsp::Engine engine(std::move(models), std::move(own));
  const fsp::Ticket ticket = engine.submit(std::move(asked));
  engine.run();
  return result(ticket);
}

// The message of the E that call() throws; "" if it throws none.
template <class E, class Call>
std::string thrown(const Call& call) {
  try {
    call();
  } catch (const E& error) {
    return error.what();
  }
  return "";
}

inline bool says(const std::string& sentence, const char* words) {
  return sentence.find(words) != std::string::npos;
}

// Requests of every plan, and what each gives alone.
struct Mix {
  std::vector<fsp::Request> requests;
  std::vector<Floats> want;

  explicit Mix(const Plans& plans, size_t count = 64) {
    while (requests.size() < count) {
      for (const auto& [name, plan] : plans) requests.push_back(request(plan, requests.size()));
    }
    for (const fsp::Request& each : requests) want.push_back(alone(each));
  }

  // All of them in an order of their own, with strangers that are cancelled in between.
  void come(fsp::Engine& engine, unsigned seed) const {
    std::mt19937 dice(seed);
    std::vector<size_t> order(requests.size());
    for (size_t k = 0; k < order.size(); ++k) order[k] = k;
    for (size_t k = order.size(); k > 1; --k) std::swap(order[k - 1], order[dice() % k]);
    std::vector<fsp::Ticket> tickets, strangers;
    for (const size_t k : order) {
      tickets.push_back(engine.submit(requests[k]));
      if (dice() % 8 == 0) strangers.push_back(engine.submit(requests[dice() % order.size()]));
      if (!strangers.empty() && dice() % 3 == 0) strangers[dice() % strangers.size()].cancel();
      for (size_t ticks = dice() % 3; ticks > 0; --ticks) engine.tick();
    }
    engine.run();
    for (size_t k = 0; k < order.size(); ++k) DEMAND(result(tickets[k]) == want[order[k]]);
  }
};

void try_bits(const Plans& plans);
void try_memory(const Plans& plans);
void try_faults(const Plans& plans);
void try_queue(const Plans& plans);
void try_budget(const Plans& plans);
