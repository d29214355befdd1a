// The C++ Engine on FS_CUDA, over the emulated kernels: the bits of the CPU; a launch a tick, and
// one that gathers the model's batch.
//
//   engine <plan.fsplan>...
#include <fastsample/cuda_memory.hpp>

#include "../c/engine_cases.h"

extern "C" int64_t fs_emulated_count(const char* name);

int main(int argc, char** argv) {
  const Mix mix(plans_of(argc, argv));
  fsp::Options own = options(12);
  own.memory = std::make_shared<fsp::CudaMemory>(), own.preview = true;
  fsp::Engine engine({denoise, denoise}, own);
  mix.come(engine, 3);
  std::vector<fsp::Ticket> tickets;
  for (size_t k = 0; k < 8; ++k) tickets.push_back(engine.submit(mix.requests[k]));
  engine.tick();
  const int64_t before = fs_emulated_count(nullptr);
  engine.tick(), engine.tick();
  DEMAND(fs_emulated_count(nullptr) == before + 4);
  engine.run();
  for (size_t k = 0; k < 8; ++k) DEMAND(result(tickets[k]) == mix.want[k]);
  std::printf("%d checks\n", checks.load());
  return 0;
}
