// The one exception of the core: a status of fastsample.h and a sentence. c_api/guard.h turns it
// into both.
#pragma once

#include <cstdarg>
#include <cstdio>
#include <stdexcept>
#include <string>

#include "fastsample/fastsample.h"

namespace fs {

class Error : public std::runtime_error {
 public:
  Error(fs_status status, const std::string& sentence)
      : std::runtime_error(sentence), status_(status) {}
  fs_status status() const { return status_; }

 private:
  fs_status status_;
};

// Throws Error(status) with a printf-style sentence.
[[noreturn]] __attribute__((format(printf, 2, 3))) inline void fail(fs_status status,
                                                                    const char* format, ...) {
  char sentence[512];
  va_list values;
  va_start(values, format);
  std::vsnprintf(sentence, sizeof sentence, format, values);
  va_end(values);
  throw Error(status, sentence);
}

}  // namespace fs
