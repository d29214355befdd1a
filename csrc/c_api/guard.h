// Shared by plans.cpp and kernels.cpp, the only files that check a caller's arguments.
#pragma once

#include <cstdint>

#include "core/error.h"

namespace fs {

// Stores the sentence fs_last_error() answers on this thread, cut to fit.
void set_last_error(const char* sentence) noexcept;

// Throws Error(status) with a printf-style sentence.
[[noreturn]] __attribute__((format(printf, 2, 3))) void fail(fs_status status, const char* format,
                                                             ...);

// Runs body; any exception becomes a status and a sentence.
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
    set_last_error(where);
    return FS_E_INTERNAL;
  }
}

// The head every argument struct shares.
template <class Args>
void check_struct(const char* where, const Args* args) {
  if (!args) fail(FS_E_ARG, "%s: args is NULL; a struct is needed", where);
  if (args->struct_size != sizeof(Args)) {
    fail(FS_E_ARG, "%s: struct_size is %u; set it to sizeof, %zu in this library", where,
         static_cast<unsigned>(args->struct_size), sizeof(Args));
  }
}

}  // namespace fs
