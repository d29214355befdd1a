#include "engine/checks.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace fastsample::inside {
namespace {

constexpr int64_t kMost = int64_t{1} << 40;

void check_range(const char* name, int64_t value, int64_t least, int64_t most) {
  if (value < least || value > most)
    refuse(std::string("Engine: ") + name + " is " + std::to_string(value) + "; " +
           std::to_string(least) + " to " + std::to_string(most) + " is accepted");
}

// The noise that a request begins with is drawn again by a later row.
bool draws_first_noise(const Plan& plan, bool masked) {
  const fs_info& info = plan.info();
  for (const fs_row_info& row : plan.rows()) {
    for (int l = 0; l < info.L; ++l) {
      const uint64_t blends = masked ? row.known_reads >> (1 + l) : 0;
      const uint64_t drawn = row.reads >> (3 + info.S + info.G + l) | blends;
      if (row.ids[l] == 0 && (drawn & 1) != 0) return true;
    }
  }
  return false;
}

template <class T>
bool all_within(const void* values, int64_t count, T least, T most) {
  const auto* const given = static_cast<const T*>(values);
  return std::all_of(given, given + count, [=](T v) { return v >= least && v <= most; });
}

bool all_within(const void* values, const Options& options, double least, double most) {
  if (options.state_dtype == FS_F64) return all_within(values, options.elements, least, most);
  const double widest = std::numeric_limits<float>::max();
  return all_within(values, options.elements, static_cast<float>(std::max(least, -widest)),
                    static_cast<float>(std::min(most, widest)));
}

void check_mask(const Request& request, const Options& options) {
  const std::string where = "Engine.submit: ";
  if (!request.mask && !request.known) return;
  if (!request.mask || !request.known)
    refuse(where + (request.mask ? "mask is given without known" : "known is given without mask") +
           "; both are accepted");
  const auto blends = [](const fs_row_info& row) { return row.known_reads != 0; };
  const std::vector<fs_row_info>& rows = request.plan.rows();
  if (std::none_of(rows.begin(), rows.end(), blends))
    refuse(where +
           "mask and known are given and no row of the plan blends a known image; one made "
           "with inpaint=True is accepted");
  if (!all_within(request.mask, options, 0, 1))
    refuse(where + "mask leaves 0 (sample) to 1 (keep the known image); within is accepted");
  const double most = std::numeric_limits<double>::max();
  if (!all_within(request.known, options, -most, most))
    refuse(where + "known holds a NaN or an infinity; finite numbers are accepted");
}

void check_start(const Request& request) {
  const std::string where = "Engine.submit: ";
  const Plan& plan = request.plan;
  const bool image = plan.begins_from_image();
  if (request.noise && request.latent)
    refuse(where + "noise and latent are given; one of them is accepted");
  if (!request.latent) {
    if (image) refuse(where + "the plan begins from an image; it is to be given as latent");
    if (request.start != 0)
      refuse(where + "start is " + std::to_string(request.start) +
             " without a latent; the state at that row is to be given, or start 0");
    if (request.noise && draws_first_noise(plan, request.mask))
      refuse(where + "noise is given and the plan draws its first noise again; a seed is accepted");
    return;
  }
  const bool there = request.start >= (image ? 0 : 1) && request.start < plan.info().rows;
  if (!there || !plan.rows()[static_cast<size_t>(request.start)].entry)
    refuse(where + "start is " + std::to_string(request.start) +
           ", at which no latent enters this plan; one of its entries" +
           (image ? "" : " after row 0") + " is accepted");
}

}  // namespace

Options checked(Options options, const std::vector<Model>& models) {
  check_range("elements", options.elements, 1, kMost);
  check_range("capacity", options.capacity, 1, std::min(kMost / options.elements, kMost >> 20));
  check_range("waiting", options.waiting, -1, kMost);
  check_range("pad_to", options.pad_to, 0, kMost >> 20);
  check_range("state_dtype", options.state_dtype, FS_F32, FS_F64);
  check_range("model_dtype", options.model_dtype, FS_F32, FS_BF16);
  check_range("threads", options.threads, 0, kMost >> 20);
  check_range("overtakes", options.overtakes, 0, kMost);
  check_range("max_bytes", options.max_bytes, 0, std::numeric_limits<int64_t>::max());
  check_range("models", static_cast<int64_t>(models.size()), 1, kMost);
  for (const Model& model : models) {
    if (!model) refuse("Engine: a model is empty; something to call is accepted");
  }
  if (!options.policy) refuse("Engine: the policy is empty; something to call is accepted");
  if (options.waiting < 0) options.waiting = options.capacity;
  if (!options.memory) options.memory = std::make_shared<HostMemory>();
  return options;
}

void check_request(const Request& request, const Options& options, size_t models_given) {
  const std::string where = "Engine.submit: ";
  const Plan& plan = request.plan;
  const fs_info& info = plan.info();
  const auto models = static_cast<int64_t>(models_given);
  for (const fs_row_info& row : plan.rows()) {
    if (row.call >= models)
      refuse(where + "the plan asks model " + std::to_string(row.call) + " of " +
             std::to_string(models) + "; an Engine of as many models is needed");
  }
  if (options.pad_to > 0 && info.G > options.pad_to)
    refuse(where + "the plan has " + std::to_string(info.G) + " branches; pad_to, " +
           std::to_string(options.pad_to) + ", is accepted");
  const auto finite = [](double scale) { return std::isfinite(scale); };
  if (request.guidance.size() != static_cast<size_t>(info.K) ||
      !std::all_of(request.guidance.begin(), request.guidance.end(), finite))
    refuse(where + std::to_string(request.guidance.size()) + " guidance scale(s) are given; " +
           std::to_string(info.K) + " finite ones are accepted");
  if (!request.conditions.empty() && request.conditions.size() != static_cast<size_t>(info.G))
    refuse(where + std::to_string(request.conditions.size()) + " conditions are given; none, or " +
           std::to_string(info.G) + ", one a branch, are accepted");
  if (request.every < 1 || !(request.deadline > 0))
    refuse(where + "every is " + std::to_string(request.every) + " and deadline " +
           std::to_string(request.deadline) + "; 1 or more, and seconds above 0, are accepted");
  check_mask(request, options), check_start(request);
  Table(options.state_dtype, 1).add(plan);  // its numbers fit the dtype
}

}  // namespace fastsample::inside
