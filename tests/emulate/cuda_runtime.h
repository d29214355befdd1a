// CUDA on the CPU, for tests: g++ compiles the .cu files as they are, with this folder before
// CUDA's own. A launch runs at once, block after block, in the caller's memory.
//
// Threads of a block run one after the other; one that meets a barrier or a warp exchange waits in
// a fiber of its own. Refused with a sentence and abort(): a barrier that some threads of its block
// (or warp) never reach, and two different ones at once. Shared memory holds garbage when a block
// starts. emulate::order: 0 the first thread first, 1 the last first, n > 1 shuffled by seed n.
// Not seen: fences and races between blocks, which run in turn; what ptxas makes of the text.
#pragma once

#include <dlfcn.h>
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#define FS_EMULATED
#define __global__ static
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static __attribute__((section("fs_shared")))

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

extern "C" {
extern char __start_fs_shared[] __attribute__((weak, visibility("hidden")));
extern char __stop_fs_shared[] __attribute__((weak, visibility("hidden")));
}

namespace emulate {

constexpr int kWarp = 32;
constexpr size_t kStack = 256 * 1024;

// A place to come back to. swapcontext() asks the kernel for the signal mask every time; past the
// first entry _setjmp() does without (longjmp() makes a sanitizer forget the stack that is left).
struct Place {
  ucontext_t context;
  jmp_buf here;
  bool entered = false;
};

inline void go(Place& from, Place& to) {
#ifdef __SANITIZE_ADDRESS__
  // The sanitizer's own swapcontext() forgets what it knows of the stack that is entered.
  static const auto swap = reinterpret_cast<decltype(&swapcontext)>(
      dlsym(dlopen("libc.so.6", RTLD_LAZY), "swapcontext"));
  swap(&from.context, &to.context);
#else
  from.entered = true;
  if (_setjmp(from.here) != 0) return;
  if (to.entered) _longjmp(to.here, 1);
  setcontext(&to.context);
#endif
}

struct Fiber {
  Place place;
  std::unique_ptr<char[]> stack{new char[kStack]};
};

struct Thread {
  dim3 index;
  Fiber* fiber;      // where it waits
  const char* site;  // the barrier it waits at, NULL = none
  bool warp, done;   // warp: only its warp is waited for
  int vote;
  unsigned turn;  // of its exchanges, which alternate between two values
  uint64_t offered[2];
};

struct Machine {
  dim3 grid, block, at, thread;
  std::function<void()> body;
  std::vector<Thread> threads;
  std::vector<int> queue;  // threads that have not begun, the next one last
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Fiber*> idle;
  Place scheduler;
  Fiber* running = nullptr;
  int current = -1, vote = 0;
};

inline Machine machine;
inline unsigned order = 0;
inline bool low_caps = false;                  // grids of a few blocks only
inline std::map<std::string, int64_t> counts;  // launches by name

inline void count(const char* name) { ++counts[name]; }

[[noreturn]] inline void refuse(const char* sentence, const char* site) {
  std::fprintf(stderr, "emulate: %s (%s, block %u,%u,%u, thread %d)\n", sentence, site,
               machine.at.x, machine.at.y, machine.at.z, machine.current);
  std::abort();
}

inline std::vector<int> turns(int count) {
  std::vector<int> turn(static_cast<size_t>(count));
  std::iota(turn.begin(), turn.end(), 0);
  if (order == 1) std::reverse(turn.begin(), turn.end());
  if (order > 1) std::shuffle(turn.begin(), turn.end(), std::mt19937(order));
  return turn;
}

inline Thread& current() { return machine.threads[static_cast<size_t>(machine.current)]; }

inline void enter(int k) {
  machine.current = k;
  machine.thread = current().index;
}

// What a fiber does: thread after thread, until none is left to begin.
inline void work() {
  for (;;) {
    while (!machine.queue.empty()) {
      enter(machine.queue.back());
      machine.queue.pop_back();
      machine.body();
      current().done = true;
    }
    Fiber* const self = machine.running;
    machine.idle.push_back(self);
    go(self->place, machine.scheduler);
  }
}

inline void make_fiber() {
  machine.fibers.emplace_back(new Fiber);
  machine.idle.push_back(machine.fibers.back().get());
  ucontext_t& context = machine.idle.back()->place.context;
  getcontext(&context);
  context.uc_stack.ss_sp = machine.idle.back()->stack.get();
  context.uc_stack.ss_size = kStack;
  context.uc_link = nullptr;  // work() never returns
  makecontext(&context, work, 0);
}

inline Fiber* free_fiber() {
  if (machine.idle.empty()) make_fiber();
  Fiber* const fiber = machine.idle.back();
  machine.idle.pop_back();
  return fiber;
}

inline void resume(Fiber* fiber) {
  machine.running = fiber;
  go(machine.scheduler, fiber->place);
}

// The running thread waits until its whole block, or its warp, stands at this site.
inline void wait(const char* site, bool warp, int vote) {
  const int self = machine.current;
  Thread& me = current();
  me.site = site, me.warp = warp, me.vote = vote, me.fiber = machine.running;
  go(me.fiber->place, machine.scheduler);
  enter(self);
}

// Frees threads [first, last) if each of them waits, at one site, for this kind of company.
inline bool release(int first, int last, bool warp) {
  const char* site = nullptr;
  bool left = false;
  int vote = 0;
  for (int k = first; k < last; ++k) {
    const Thread& thread = machine.threads[static_cast<size_t>(k)];
    left = left || thread.done;
    if (thread.done) continue;
    if (!thread.site || thread.warp != warp) return false;
    if (site && std::strcmp(site, thread.site) != 0)
      refuse("threads wait at two different barriers", site);
    site = thread.site, vote |= thread.vote;
  }
  if (!site) return false;
  if (left) refuse("some threads have ended without reaching a barrier", site);
  machine.vote = vote;
  for (int k = first; k < last; ++k) machine.threads[static_cast<size_t>(k)].site = nullptr;
  return true;
}

inline void run_waiting(int first, int last, const std::vector<int>& turn) {
  for (const int k : turn) {
    Thread& thread = machine.threads[static_cast<size_t>(k)];
    if (k >= first && k < last && !thread.done && !thread.site) resume(thread.fiber);
  }
}

inline void run_block() {
  const dim3& size = machine.block;
  const int count = static_cast<int>(size.x * size.y * size.z);
  const std::vector<int> turn = turns(count);
  if (__start_fs_shared)
    std::memset(__start_fs_shared, 0xFF, static_cast<size_t>(__stop_fs_shared - __start_fs_shared));
  machine.threads.assign(static_cast<size_t>(count), Thread{});
  for (int k = 0; k < count; ++k) {
    const unsigned u = static_cast<unsigned>(k);
    machine.threads[static_cast<size_t>(k)].index =
        dim3(u % size.x, u / size.x % size.y, u / (size.x * size.y));
  }
  machine.queue.assign(turn.rbegin(), turn.rend());
  while (!machine.queue.empty()) resume(free_fiber());
  const std::vector<int> warps = turns((count - 1) / kWarp + 1);
  do {
    for (const int warp : warps) {  // each as far as it gets
      const int first = warp * kWarp, last = std::min(first + kWarp, count);
      do run_waiting(first, last, turn);
      while (release(first, last, true));
    }
  } while (release(0, count, false));
  for (const Thread& thread : machine.threads) {
    if (!thread.done) refuse("a barrier that some threads never reach", thread.site);
  }
}

inline void run_grid(dim3 grid, dim3 block, std::function<void()> body) {
  machine.grid = grid, machine.block = block, machine.body = std::move(body);
  for (const int k : turns(static_cast<int>(grid.x * grid.y * grid.z))) {
    const unsigned u = static_cast<unsigned>(k);
    machine.at = dim3(u % grid.x, u / grid.x % grid.y, u / (grid.x * grid.y));
    run_block();
  }
}

template <class T>
T exchange(T value, int lane, const char* site) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "one register or two");
  const unsigned turn = current().turn++ % 2;
  std::memcpy(&current().offered[turn], &value, sizeof value);
  wait(site, true, 0);
  const int from = machine.current / kWarp * kWarp + lane;
  std::memcpy(&value, &machine.threads[static_cast<size_t>(from)].offered[turn], sizeof value);
  return value;
}

inline int lane() { return machine.current % kWarp; }

inline int vote(int value, const char* site) {
  wait(site, false, value != 0);
  return machine.vote;
}

}  // namespace emulate

inline const dim3 &threadIdx = emulate::machine.thread, &blockIdx = emulate::machine.at,
                  &blockDim = emulate::machine.block, &gridDim = emulate::machine.grid;

#define FS_EMULATED_TEXT(line) #line
#define FS_EMULATED_LINE(line) FS_EMULATED_TEXT(line)
#define FS_EMULATED_SITE __FILE__ ":" FS_EMULATED_LINE(__LINE__)
#define __syncthreads() emulate::wait(FS_EMULATED_SITE, false, 0)
#define __syncwarp() emulate::wait(FS_EMULATED_SITE, true, 0)
#define __syncthreads_or(value) emulate::vote(value, FS_EMULATED_SITE)
#define __shfl_xor_sync(mask, value, by) \
  emulate::exchange(value, emulate::lane() ^ (by), FS_EMULATED_SITE)

inline int __ffs(int bits) { return __builtin_ffs(bits); }

template <class T>
T atomicMin(T* at, T value) {
  const T old = *at;
  *at = std::min(old, value);
  return old;
}

template <class T>
T atomicCAS(T* at, T expected, T value) {
  const T old = *at;
  if (old == expected) *at = value;
  return old;
}

// ---- The runtime's functions: two devices, and errors that a test has put there. ----------------
#include "runtime_api.h"
