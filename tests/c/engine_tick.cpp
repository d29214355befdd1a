// What a tick of the C++ Engine takes, for bench/bench_engine.py.
//
//   engine_tick <states.bin> <requests> <elements> <ticks> <plan.fsplan>...
//
// Request k follows plan k mod (number of plans) with seed k. First all of them are run to their
// end through out = x / (1 + |x|), and their samples are written. Then, for every line that comes,
// an Engine with all of them in flight, the first three ticks behind it, takes so many more, and
// the seconds of those are printed; the model writes outputs that were made beforehand.
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fastsample/engine.hpp>
#include <iostream>

namespace {

using Plans = std::vector<fastsample::Plan>;
using Clock = std::chrono::steady_clock;

std::vector<fastsample::Ticket> submit(fastsample::Engine& engine, const Plans& plans,
                                       int64_t requests) {
  std::vector<fastsample::Ticket> tickets;
  for (int64_t k = 0; k < requests; ++k) {
    fastsample::Request made(plans[static_cast<size_t>(k) % plans.size()]);
    made.seed = static_cast<uint64_t>(k);
    tickets.push_back(engine.submit(std::move(made)));
  }
  return tickets;
}

void write(const char* path, const Plans& plans, const fastsample::Options& options) {
  const auto model = [](const fastsample::Batch& batch) {
    const auto* x = static_cast<const float*>(batch.x);
    auto* out = static_cast<float*>(batch.out);
    for (int64_t e = 0; e < batch.rows * batch.elements; ++e) out[e] = x[e] / (1 + std::fabs(x[e]));
  };
  fastsample::Engine engine(model, options);
  const auto tickets = submit(engine, plans, options.capacity);
  engine.run();
  std::FILE* const file = std::fopen(path, "wb");
  if (!file) throw std::runtime_error(std::string("cannot write ") + path);
  for (const fastsample::Ticket& ticket : tickets)
    std::fwrite(ticket.result<float>(), sizeof(float), static_cast<size_t>(options.elements), file);
  if (std::fclose(file) != 0) throw std::runtime_error(std::string("cannot write ") + path);
}

double round(const Plans& plans, const fastsample::Options& options, int ticks) {
  std::vector<float> outputs(static_cast<size_t>(options.capacity * options.elements));
  for (size_t e = 0; e < outputs.size(); ++e) outputs[e] = static_cast<float>(e % 17) / 8 - 1;
  const auto model = [&outputs](const fastsample::Batch& batch) {
    const auto bytes = static_cast<size_t>(batch.rows * batch.elements) * sizeof(float);
    std::memcpy(batch.out, outputs.data(), bytes);
  };
  fastsample::Engine engine(model, options);
  const auto tickets = submit(engine, plans, options.capacity);
  for (int k = 0; k < 3; ++k) engine.tick();
  const auto begun = Clock::now();
  for (int k = 0; k < ticks; ++k) engine.tick();
  const std::chrono::duration<double> took = Clock::now() - begun;
  for (const fastsample::Ticket& ticket : tickets) {
    if (ticket.done()) throw std::runtime_error("a request has ended");
  }
  return took.count();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 6) return std::fprintf(stderr, "engine_tick: see its first lines\n"), 2;
  try {
    Plans plans;
    for (int k = 5; k < argc; ++k) plans.push_back(fastsample::Plan::load(argv[k]));
    fastsample::Options options;
    options.capacity = std::atoll(argv[2]), options.elements = std::atoll(argv[3]);
    options.threads = 1;
    write(argv[1], plans, options);
    std::cout << "ready" << std::endl;
    for (std::string line; std::getline(std::cin, line);)
      std::cout << round(plans, options, std::atoi(argv[4])) << std::endl;
    return 0;
  } catch (const std::exception& error) {
    return std::fprintf(stderr, "engine_tick: %s\n", error.what()), 1;
  }
}
