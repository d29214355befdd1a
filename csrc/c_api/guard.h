// Shared by plans.cpp and kernels.cpp, the only files that check a caller's arguments.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "core/error.h"
#include "core/row.h"

namespace fs {

// Stores `where` and the sentence, one behind the other and cut to fit, for fs_last_error() on this
// thread; the status.
int refused(fs_status status, const char* sentence, const char* where = "") noexcept;

// Runs body of the function `where`; any exception becomes a status and a sentence.
template <class Body>
int guard(const char* where, const Body& body) noexcept {
  try {
    body();
    return FS_OK;
  } catch (const Error& error) {
    return refused(error.status(), error.what());
  } catch (const std::bad_alloc&) {
    return refused(FS_E_MEMORY, "out of memory; nothing was changed");
  } catch (const std::length_error&) {
    return refused(FS_E_MEMORY, "sizes beyond memory; nothing was changed");
  } catch (...) {
    return refused(FS_E_INTERNAL, ": internal error", where);
  }
}

// The size of a struct in version 1 of the interface: up to its first field that came later.
constexpr size_t version_1(const fs_step_args*) { return offsetof(fs_step_args, x_in); }
constexpr size_t version_1(const fs_noise_args*) { return offsetof(fs_noise_args, stage); }
constexpr size_t version_1(const fs_moments_args*) { return offsetof(fs_moments_args, workspace); }
constexpr size_t version_1(const fs_cost_args*) { return offsetof(fs_cost_args, workspace); }
template <class Args>
constexpr size_t version_1(const Args*) {
  return sizeof(Args);
}

// A caller's struct may have any size from version 1 up to ours.
template <class Args>
void check_struct(const char* where, const Args* args) {
  if (!args) fail(FS_E_ARG, "%s: args is NULL; a struct is needed", where);
  if (args->struct_size < version_1(args) || args->struct_size > sizeof(Args))
    fail(FS_E_ARG, "%s: struct_size is %u; set it to sizeof, %zu in this library", where,
         static_cast<unsigned>(args->struct_size), sizeof(Args));
}

// The struct a caller gave: itself where it is whole, else copied into `room`, with zeros for the
// fields it lacks.
template <class Args>
const Args& whole(const char* where, const Args* args, Args& room) {
  check_struct(where, args);
  if (args->struct_size == sizeof(Args)) return *args;
  room = {};
  std::memcpy(&room, args, args->struct_size);
  return room;
}

inline long long wide(int64_t value) { return static_cast<long long>(value); }

inline void check_range(const char* where, const char* name, int64_t value, int64_t least,
                        int64_t most) {
  if (value < least || value > most)
    fail(FS_E_ARG, "%s: %s is %lld; %lld to %lld is accepted", where, name, wide(value),
         wide(least), wide(most));
}

inline void check_dims(const char* where, const Dims& d) {
  check_range(where, "S", d.S, 0, FS_MAX_SLOTS);
  check_range(where, "G", d.G, 0, FS_MAX_BRANCHES);
  check_range(where, "L", d.L, 0, FS_MAX_NOISES);
  check_range(where, "K", d.K, 0, FS_MAX_SCALES);
  check_range(where, "E", d.E, 0, FS_MAX_SCALARS);
}

}  // namespace fs
