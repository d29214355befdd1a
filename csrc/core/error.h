// The one exception of the core: a status of fastsample.h and a sentence. c_api/guard.h turns it
// into both.
#pragma once

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

}  // namespace fs
