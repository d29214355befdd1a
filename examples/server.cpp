// A server's loop in C++: requests of several plan files come one by one and in any order, run in
// one batch through one model, and leave when they are done.
//
//   server_cpp <states.bin> <requests> <elements> <order> <plan.fsplan>...
//
// Request k follows plan k mod (number of plans), with seed k, guidance scales 2, 3, ..., and one
// condition for each branch of its plan. <order> is the seed of the order in which requests come,
// and of how many come before a tick; no request's bits depend on it. For each request its number
// (int32) and its sample (float32 [elements]) are written, in the order in which they were done.
//
// Build, after `cmake --install build/c --prefix <dir>`:
//   c++ -std=c++17 -ffp-contract=off examples/server.cpp $(pkg-config --cflags --libs
//       fastsample-engine) -o server_cpp
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fastsample/engine.hpp>
#include <numeric>
#include <random>
#include <utility>

namespace {

// Stand-in for a network. A row's condition is a number w; each operation is rounded to float32:
//     out = (w x - 0.1) + 0.001 t
void denoise(const fastsample::Batch& batch) {
  const auto* x = static_cast<const float*>(batch.x);
  const auto* t = static_cast<const float*>(batch.t);
  auto* out = static_cast<float*>(batch.out);
  for (int64_t row = 0; row < batch.rows; ++row) {
    const float w = *static_cast<const float*>(batch.asked[row].condition);
    const float shift = 0.001f * t[row * batch.scalars];
    for (int64_t e = row * batch.elements; e < (row + 1) * batch.elements; ++e)
      out[e] = (w * x[e] - 0.1f) + shift;
  }
}

fastsample::Request request(const fastsample::Plan& plan, int number) {
  fastsample::Request made(plan);
  made.seed = static_cast<uint64_t>(number);
  for (int k = 0; k < plan.info().K; ++k) made.guidance.push_back(2.0 + k);
  for (int g = 0; g < plan.info().G; ++g) {
    const float w = 0.3f + 0.01f * static_cast<float>(number % 7) + 0.1f * static_cast<float>(g);
    made.conditions.push_back(std::make_shared<float>(w));
  }
  return made;
}

// The numbers of the requests in the order in which they come, and how many come before a tick.
struct Arrivals {
  std::vector<int> order;
  std::mt19937 dice;

  Arrivals(int requests, unsigned seed) : order(static_cast<size_t>(requests)), dice(seed) {
    std::iota(order.begin(), order.end(), 0);
    for (size_t k = order.size(); k > 1; --k) std::swap(order[k - 1], order[dice() % k]);
  }
  size_t count() { return std::min<size_t>(dice() % 5, order.size()); }
};

void serve(const std::vector<fastsample::Plan>& plans, Arrivals arrivals, int64_t elements,
           std::FILE* out) {
  fastsample::Options options;
  options.elements = elements;
  options.capacity = 24;
  options.waiting = static_cast<int64_t>(arrivals.order.size());
  fastsample::Engine engine(denoise, options);
  std::vector<std::pair<int, fastsample::Ticket>> tickets;
  for (bool some = true; some || !arrivals.order.empty();) {
    for (size_t more = arrivals.count(); more > 0; --more, arrivals.order.pop_back()) {
      const int number = arrivals.order.back();
      const auto which = static_cast<size_t>(number) % plans.size();
      tickets.emplace_back(number, engine.submit(request(plans[which], number)));
    }
    some = engine.tick();
    const auto ended = [&](const std::pair<int, fastsample::Ticket>& each) {
      if (!each.second.done()) return false;
      std::fwrite(&each.first, sizeof(int), 1, out);
      std::fwrite(each.second.result<float>(), sizeof(float), static_cast<size_t>(elements), out);
      return true;
    };
    tickets.erase(std::remove_if(tickets.begin(), tickets.end(), ended), tickets.end());
  }
  const fastsample::Counts counts = engine.counts();
  std::printf("%lld requests in %lld ticks, %lld calls of the model with %lld rows\n",
              static_cast<long long>(counts.result), static_cast<long long>(counts.ticks),
              static_cast<long long>(counts.calls), static_cast<long long>(counts.rows));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 6) {
    std::fprintf(stderr,
                 "usage: server_cpp <states.bin> <requests> <elements> <order> <plan.fsplan>...\n");
    return 2;
  }
  try {
    std::vector<fastsample::Plan> plans;
    for (int k = 5; k < argc; ++k) plans.push_back(fastsample::Plan::load(argv[k]));
    std::FILE* out = std::fopen(argv[1], "wb");
    if (!out) throw std::runtime_error(std::string("cannot write ") + argv[1]);
    const Arrivals arrivals(std::atoi(argv[2]), static_cast<unsigned>(std::atoi(argv[4])));
    serve(plans, arrivals, std::atoll(argv[3]), out);
    if (std::fclose(out) != 0) throw std::runtime_error(std::string("cannot write ") + argv[1]);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "server_cpp: %s\n", error.what());
    return 1;
  }
}
