// What an Engine and a request may not say: Error, one sentence.
#pragma once

#include "fastsample/engine.hpp"

namespace fastsample::inside {

// The options, with what their defaults stand for.
Options checked(Options options, const std::vector<Model>& models);

void check_request(const Request& request, const Options& options, size_t models);

[[noreturn]] inline void refuse(const std::string& sentence) { throw Error(FS_E_ARG, sentence); }

}  // namespace fastsample::inside
