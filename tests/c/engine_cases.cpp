// The C++ Engine, case by case:  engine_cases <plan.fsplan>...
#include "engine_cases.h"

int main(int argc, char** argv) {
  const Plans plans = plans_of(argc, argv);
  try_bits(plans);
  try_memory(plans);
  try_faults(plans);
  try_queue(plans);
  try_budget(plans);
  std::printf("%d checks\n", checks.load());
  return 0;
}
