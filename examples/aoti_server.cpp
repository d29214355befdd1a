// A server's loop with a real network and without Python: requests of several plan files run in one
// batch through a network that AOTInductor has compiled ahead of time.
//
//   aoti_server <net.pt2> <samples.f32> {<plan.fsplan> <seed> <label>}...
//
// Each three of the last arguments are a request: its plan, the seed of its noise, and its label
// (0 to 9; 10: none). A plan of two branches reads the network without a label as well, with a
// guidance scale of 2. One request comes before each tick, so that they stand at different rows.
// The samples, float32 [requests, 1, 28, 28] in the order of the requests, are those of
// fastsample.Sampler in Python for the same plan, seed and label, up to the network's own rounding.
//
// examples/aoti_export.py writes net.pt2 and plans for it. Here the network is compiled alone and
// runs any plan, as many requests a batch as there are. fastsample.export(sampler) is the other
// way: the whole sampler is one .pt2, of one plan and for a batch that begins together, and the
// program needs no fastsample.
//
// A plan has to be made for the network's schedule and prediction, which its note names: Sampler
// refuses another, here nobody looks. A .pt2 belongs to the torch and the processor it was made
// with, and looks at the shapes it is given only with AOTI_RUNTIME_CHECK_INPUTS=1 around it.
//
// Build: examples/CMakeLists.txt.
#include <ATen/ops/from_blob.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <charconv>
#include <cstdio>
#include <cstring>
#include <fastsample/engine.hpp>
#include <fstream>
#include <map>

namespace {

using Network = torch::inductor::AOTIModelPackageLoader;

constexpr int64_t kImage = 1 * 28 * 28;
constexpr int64_t kNoLabel = 10;
constexpr double kGuidance = 2.0;

// torch's errors go on with where they were raised, line after line.
std::string first_line(const std::exception& error) {
  const std::string words = error.what();
  return words.substr(0, words.find('\n'));
}

Network loaded(const std::string& path) {
  try {
    return Network(path);
  } catch (const std::exception& error) {
    throw std::runtime_error(path + ": " + first_line(error));
  }
}

// A network of (x [B,1,28,28], t [B], label [B]). What is wrong here ends the requests that asked.
void ask(Network& network, const fastsample::Batch& batch) {
  const c10::InferenceMode no_gradients;
  std::vector<int64_t> labels;
  for (int64_t row = 0; row < batch.rows; ++row)
    labels.push_back(*static_cast<const int64_t*>(batch.asked[row].condition));
  const std::vector<int64_t> shape = {batch.rows, 1, 28, 28};
  const std::vector<at::Tensor> outputs =
      network.run({at::from_blob(const_cast<void*>(batch.x), shape),
                   at::from_blob(const_cast<void*>(batch.t), {batch.rows}),
                   at::from_blob(labels.data(), {batch.rows}, at::kLong)});
  if (outputs.size() != 1 || outputs[0].sizes() != shape)
    throw std::runtime_error("the network did not return one tensor of the shape of x");
  at::from_blob(batch.out, shape).copy_(outputs[0]);
}

uint64_t number(const char* text, const char* what, uint64_t most) {
  uint64_t value = 0;
  const char* const end = text + std::strlen(text);
  const auto [read, error] = std::from_chars(text, end, value);
  if (error != std::errc() || read != end || value > most)
    throw std::invalid_argument(std::string(what) + " is \"" + text + "\"; 0 to " +
                                std::to_string(most) + " is accepted");
  return value;
}

// words: a plan's path, a seed, a label.
fastsample::Request request(const fastsample::Plan& plan, char** words) {
  const fs_info& info = plan.info();
  if (info.E != 1 || info.G > 2)
    throw std::invalid_argument(std::string(words[0]) + " tells " + std::to_string(info.E) +
                                " time(s) to " + std::to_string(info.G) +
                                " branch(es); one time and up to two branches are accepted");
  fastsample::Request made(plan);
  made.seed = number(words[1], "a seed", UINT64_MAX);
  made.guidance.assign(static_cast<size_t>(info.K), kGuidance);
  made.conditions = {std::make_shared<int64_t>(number(words[2], "a label", kNoLabel))};
  if (info.G == 2) made.conditions.push_back(std::make_shared<int64_t>(kNoLabel));
  return made;
}

std::vector<fastsample::Request> requests(char** words, int count) {
  std::map<std::string, fastsample::Plan> plans;
  std::vector<fastsample::Request> made;
  for (; count > 0; words += 3, count -= 3) {
    auto plan = plans.find(words[0]);
    if (plan == plans.end()) plan = plans.emplace(words[0], fastsample::Plan::load(words[0])).first;
    made.push_back(request(plan->second, words));
  }
  return made;
}

// Their samples, in order.
std::vector<float> served(Network& network, const std::vector<fastsample::Request>& coming) {
  fastsample::Options options;
  options.elements = kImage;
  options.waiting = static_cast<int64_t>(coming.size());
  fastsample::Engine engine([&](const fastsample::Batch& batch) { ask(network, batch); }, options);
  std::vector<fastsample::Ticket> tickets;
  for (const fastsample::Request& each : coming) {
    tickets.push_back(engine.submit(each));
    engine.tick();
  }
  engine.run();
  std::vector<float> samples;
  for (const fastsample::Ticket& ticket : tickets) {
    const float* const x0 = ticket.result<float>();
    samples.insert(samples.end(), x0, x0 + kImage);
  }
  const fastsample::Counts counts = engine.counts();
  std::printf("%lld requests in %lld ticks, %lld calls of the network with %lld rows\n",
              static_cast<long long>(counts.result), static_cast<long long>(counts.ticks),
              static_cast<long long>(counts.calls), static_cast<long long>(counts.rows));
  return samples;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc < 6 || argc % 3 != 0)
      throw std::invalid_argument(
          std::to_string(argc - 1) +
          " arguments; <net.pt2> <samples.f32> {<plan.fsplan> <seed> <label>}... is accepted");
    const std::vector<fastsample::Request> coming = requests(argv + 3, argc - 3);
    Network network = loaded(argv[1]);
    const std::vector<float> samples = served(network, coming);
    std::ofstream out(argv[2], std::ios::binary);
    out.write(reinterpret_cast<const char*>(samples.data()),
              static_cast<std::streamsize>(samples.size() * sizeof(float)));
    if (!out.flush()) throw std::runtime_error(std::string("cannot write ") + argv[2]);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "aoti_server: %s\n", first_line(error).c_str());
    return 1;
  }
}
