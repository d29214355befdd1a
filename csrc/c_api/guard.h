// Shared by plans.cpp and kernels.cpp, the only files that check a caller's arguments.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/error.h"

namespace fs {

// Stores the sentence fs_last_error() answers on this thread, cut to fit.
void set_last_error(const char* sentence) noexcept;

// Runs body of the function `where`; any exception becomes a status and a sentence.
template <class Body>
int guard(const char* where, const Body& body) noexcept {
  try {
    body();
    return FS_OK;
  } catch (const Error& error) {
    set_last_error(error.what());
    return error.status();
  } catch (const std::bad_alloc&) {
    set_last_error("out of memory; nothing was changed");
    return FS_E_MEMORY;
  } catch (const std::length_error&) {
    set_last_error("sizes beyond memory; nothing was changed");
    return FS_E_MEMORY;
  } catch (...) {
    char sentence[80];
    std::snprintf(sentence, sizeof sentence, "%s: internal error", where);
    set_last_error(sentence);
    return FS_E_INTERNAL;
  }
}

// The size of a struct in version 1 of the interface: up to its first field that came later.
template <class Args>
constexpr size_t kVersion1 = sizeof(Args);
template <>
inline constexpr size_t kVersion1<fs_step_args> = offsetof(fs_step_args, x_in);
template <>
inline constexpr size_t kVersion1<fs_noise_args> = offsetof(fs_noise_args, stage);
template <>
inline constexpr size_t kVersion1<fs_moments_args> = offsetof(fs_moments_args, workspace);
template <>
inline constexpr size_t kVersion1<fs_cost_args> = offsetof(fs_cost_args, workspace);

// The struct a caller gave, of any size from version 1 up to ours: itself where it is whole, else
// copied into `room`, with zeros for the fields it lacks.
template <class Args>
Args& whole(const char* where, Args* args, std::remove_const_t<Args>& room) {
  if (!args) fail(FS_E_ARG, "%s: args is NULL; a struct is needed", where);
  if (args->struct_size < kVersion1<std::remove_const_t<Args>> ||
      args->struct_size > sizeof(Args)) {
    fail(FS_E_ARG, "%s: struct_size is %u; set it to sizeof, %zu in this library", where,
         static_cast<unsigned>(args->struct_size), sizeof(Args));
  }
  if (args->struct_size == sizeof(Args)) return *args;
  std::memset(&room, 0, sizeof room);
  std::memcpy(&room, args, args->struct_size);
  return room;
}

// After an answer was written into whole(...): as much of it as the caller has room for.
template <class Args>
void give_back(const Args* answer, Args* out) {
  if (answer != out) std::memcpy(out, answer, out->struct_size);
}

}  // namespace fs
