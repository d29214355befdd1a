// fastsample.hpp as a C++ program uses it: plans of several solvers in one table, each run from
// there with the model of plan_run.c; the last states are written one after the other.
//
//   raii <states.bin> <elements> <seed> <plan.fsplan>...
#include <fastsample/fastsample.hpp>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>

namespace fsp = fastsample;

namespace {

void demand(bool held, const char* what) {
  if (held) return;
  std::fprintf(stderr, "raii: not so: %s\n", what);
  std::exit(1);
}

std::vector<float> last_state(const fsp::Table& table, int64_t first, const fsp::Plan& plan,
                              int64_t elements, uint64_t seed) {
  const auto D = static_cast<size_t>(elements);
  std::vector<float> x(D), input(D), slots(D * FS_MAX_SLOTS), scale, f[FS_MAX_BRANCHES];
  fs_noise_args noise = fsp::sized<fs_noise_args>();
  noise.batch = 1, noise.elements = elements, noise.seed = &seed, noise.out = x.data();
  fsp::check(fs_noise_fill(&noise));
  fs_step_args args = fsp::step_args();
  table.put_into(args);
  for (int k = 0; k < args.K; ++k) scale.push_back(2.0f + static_cast<float>(k));
  args.batch = args.pool = args.outputs = 1, args.elements = elements;
  args.x = x.data(), args.slots = slots.data(), args.model_input = input.data();
  args.scale = scale.data(), args.seed = &seed, args.one_row = 1;
  for (int g = 0; g < args.G; ++g) f[g].resize(D), args.f[g] = f[g].data();
  for (int64_t i = 0; i < plan.info().rows; ++i) {
    for (int g = 0; g < args.G; ++g) {
      if ((plan.asks(i) >> g & 1) == 0) continue;
      const float a = 0.3f + 0.1f * static_cast<float>(g);
      for (size_t e = 0; e < D; ++e) f[g][e] = a * input[e] - 0.1f;
    }
    args.row_number = static_cast<int32_t>(first + i);
    fsp::check(fs_step(&args));
  }
  return x;
}

void try_plans(const std::vector<fsp::Plan>& plans, const char* path) {
  const fsp::Plan &plan = plans[0], same = fsp::Plan::load(path);
  std::ifstream file(path, std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  demand(fsp::Plan::parse(bytes.data(), bytes.size()) == plan && same == plan, "equal plans");
  demand(plans[1] != plan && same.get() != plan.get(), "two handles");
  demand(std::string(plan.note()).size() == static_cast<size_t>(plan.info().note_bytes), "note");
  demand(plan.rows().size() == static_cast<size_t>(plan.info().rows), "rows");
  demand(plan.begins_from_image() || plan.init_scale() > 0, "init_scale");
  demand(plan.asks(0) == 0 && plan.asks(plan.info().rows - 1) == 0, "rows that call no model");
  int status = FS_OK;
  std::string sentence;
  try {
    fsp::Plan::load("no such file");
  } catch (const fsp::Error& error) {
    status = error.status(), sentence = error.what();
  }
  demand(status == FS_E_FILE && sentence.find("no such file") != std::string::npos, "the error");
}

// A table of so few rows that the plans without users must go.
void try_table(const std::vector<fsp::Plan>& plans) {
  const int64_t rows = plans[0].info().rows + plans[1].info().rows;
  fsp::Table table(FS_F32, rows);
  demand(table.add(plans[0]) == 0 && table.add(plans[1]) == plans[0].info().rows, "one by one");
  const uint64_t version = table.version();
  demand(table.add(plans[0]) == 0 && table.version() == version, "equal plans once");
  table.remove(plans[0]);
  table.remove(plans[0]);
  demand(table.add(plans[0]) == 0 && table.version() == version, "kept without users");
  table.remove(plans[0]);
  for (const fsp::Plan& other : plans) {  // whichever is short enough takes the place of plans[0]
    if (other == plans[0] || other == plans[1] || other.info().rows > plans[0].info().rows)
      continue;
    demand(table.add(other) == 0 && table.version() != version, "written over");
    demand(table.rows() == rows, "not grown");
    demand(table.add(plans[0]) == rows && table.rows() >= rows + plans[0].info().rows, "grown");
    return;
  }
  demand(false, "a plan no longer than the first");
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc < 6) return std::fprintf(stderr, "raii: see its first lines\n"), 2;
  const int64_t elements = std::atoll(argv[2]);
  const uint64_t seed = std::strtoull(argv[3], nullptr, 10);
  std::vector<fsp::Plan> plans;
  for (int k = 4; k < argc; ++k) plans.push_back(fsp::Plan::load(argv[k]));
  try_plans(plans, argv[4]);
  try_table(plans);
  fsp::Table table(FS_F32, 1);
  std::vector<int64_t> first;
  for (const fsp::Plan& plan : plans) first.push_back(table.add(plan));
  std::FILE* out = std::fopen(argv[1], "wb");
  for (size_t k = 0; out && k < plans.size(); ++k) {
    const std::vector<float> x = last_state(table, first[k], plans[k], elements, seed);
    std::fwrite(x.data(), sizeof(float), x.size(), out);
  }
  return !out || std::fclose(out) != 0;
} catch (const fsp::Error& error) {
  return std::fprintf(stderr, "raii: status %d: %s\n", error.status(), error.what()), 1;
}
