// The C++ Engine, case by case:  engine_cases <plan.fsplan>...
#include "engine_cases.h"

int main(int argc, char** argv) {
  Plans plans;
  for (int k = 1; k < argc; ++k) {
    const std::string path = argv[k];
    const size_t begin = path.find_last_of('/') + 1;
    plans.emplace(path.substr(begin, path.find_last_of('.') - begin), fsp::Plan::load(path));
  }
  try_bits(plans);
  try_memory(plans);
  try_faults(plans);
  try_queue(plans);
  std::printf("%d checks\n", checks.load());
  return 0;
}
