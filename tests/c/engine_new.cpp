// Counts what operator new gives. In a file of its own, where no caller sees it: GCC takes an
// inlined malloc for a mismatch.
#include <new>

#include "engine_cases.h"

void* operator new(size_t bytes) {
  ++allocations;
  if (void* memory = std::malloc(bytes ? bytes : 1)) return memory;
  throw std::bad_alloc();
}

void operator delete(void* memory) noexcept {
  if (memory) ++frees;
  std::free(memory);
}

void operator delete(void* memory, size_t) noexcept { operator delete(memory); }
