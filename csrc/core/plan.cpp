#include "plan.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>

#include "error.h"
#include "note.h"
#include "sha256.h"

namespace fs {
namespace {

constexpr uint8_t kMagic[8] = {0x89, 'F', 'S', 'P', 'L', 'A', 'N', '\n'};
constexpr uint32_t kVersion = 1;
constexpr size_t kHeader = 88;
constexpr size_t kDigestAt = 56;
constexpr uint64_t kNoteCap = 1 << 20;
constexpr int kCallCap = 255;
constexpr Dims kLargest{FS_MAX_SLOTS, FS_MAX_BRANCHES, FS_MAX_NOISES, FS_MAX_SCALES,
                        FS_MAX_SCALARS};

// Bytes of a row in the file.
constexpr size_t row_bytes(const Dims& d) { return size_t{8} * (d.floats() + 6 + d.L); }

constexpr size_t kLongest = kHeader + kNoteCap + FS_MAX_ROWS * row_bytes(kLargest);

static_assert(sizeof(double) == 8, "plan files hold IEEE 754 float64");

[[noreturn]] void refuse(const std::string& what) { throw Error(FS_E_FORMAT, "plan: " + what); }

uint64_t little(const uint8_t* data, int bytes) {
  uint64_t value = 0;
  for (int k = bytes - 1; k >= 0; --k) value = value << 8 | data[k];
  return value;
}

double little_double(const uint8_t* data) {
  const uint64_t bits = little(data, 8);
  double value;
  std::memcpy(&value, &bits, 8);
  return value;
}

int header_size(const uint8_t* data, int at, const char* name, int least, int most) {
  const uint64_t value = little(data + at, 4);
  if (value < static_cast<uint64_t>(least) || value > static_cast<uint64_t>(most)) {
    refuse(std::string(name) + "=" + std::to_string(value) + " in the header; " +
           std::to_string(least) + " to " + std::to_string(most) + " is accepted");
  }
  return static_cast<int>(value);
}

// Sizes from the header, and the note's length; the file's length is compared by division, before
// any product.
uint64_t read_header(const uint8_t* data, size_t size, Plan& plan) {
  if (size < kHeader)
    refuse(std::to_string(size) +
           " bytes are fewer than the header's 88; the file is cut or not a plan");
  if (std::memcmp(data, kMagic, 8) != 0)
    refuse("the first 8 bytes are not the magic number; a .fsplan file is accepted");
  header_size(data, 8, "version", kVersion, kVersion);
  header_size(data, 12, "header size", kHeader, kHeader);
  plan.rows = header_size(data, 16, "R", 2, FS_MAX_ROWS);
  plan.dims.S = header_size(data, 20, "S", 0, FS_MAX_SLOTS);
  plan.dims.G = header_size(data, 24, "G", 1, FS_MAX_BRANCHES);
  plan.dims.L = header_size(data, 28, "L", 0, FS_MAX_NOISES);
  plan.dims.K = header_size(data, 32, "K", 0, FS_MAX_SCALES);
  plan.dims.E = header_size(data, 36, "E", 1, FS_MAX_SCALARS);
  const size_t row = row_bytes(plan.dims);
  const int width = static_cast<int>(row / 8);
  header_size(data, 40, "numbers per row", width, width);
  header_size(data, 44, "reserved", 0, 0);
  const uint64_t note = little(data + 48, 8), rest = size - kHeader;
  if (note > kNoteCap)
    refuse("a note of " + std::to_string(note) + " bytes in the header; at most 1 MiB is accepted");
  if (note > rest || (rest - note) % row != 0 ||
      (rest - note) / row != static_cast<uint64_t>(plan.rows)) {
    refuse("the file has " + std::to_string(size) +
           " bytes, not what its header announces; it is cut or has a tail");
  }
  return note;
}

void check_digest(const uint8_t* data, size_t size, Plan& plan) {
  Sha256 hash;
  hash.update(data, kDigestAt);
  hash.update(data + kHeader, size - kHeader);
  plan.sha256 = hash.finish();
  if (std::memcmp(plan.sha256.data(), data + kDigestAt, 32) != 0)
    refuse("the checksum does not match; the file was damaged");
}

std::string at_row(int i) { return "row " + std::to_string(i) + ": "; }

int64_t whole(double value, int row, const char* name, int64_t least, int64_t most) {
  if (!(value >= static_cast<double>(least) && value <= static_cast<double>(most)) ||
      value != std::floor(value)) {
    refuse(at_row(row) + name + " is not a whole number from " + std::to_string(least) + " to " +
           std::to_string(most));
  }
  return static_cast<int64_t>(value);
}

void read_row(const uint8_t* data, int i, Plan& plan) {
  const Dims& d = plan.dims;
  double* floats = plan.floats.data() + static_cast<size_t>(i) * d.floats();
  for (int k = 0; k < d.floats(); ++k) {
    floats[k] = little_double(data + 8 * k);
    if (!std::isfinite(floats[k]))
      refuse(at_row(i) + "number " + std::to_string(k) + " is not finite; every number must be");
  }
  if (floats[d.clip()] < 0) refuse(at_row(i) + "clip is negative; 0 (none) or more is accepted");
  const double alpha = floats[d.alpha()], sigma = floats[d.alpha() + 1];
  if (alpha < 0 || sigma < 0 || alpha + sigma <= 0)
    refuse(at_row(i) + "alpha or sigma is negative, or both are 0; one must be positive");
  int32_t* ints = plan.ints.data() + static_cast<size_t>(i) * d.ints();
  data += size_t{8} * d.floats();
  const auto number = [&](int k, const char* name, int64_t least, int64_t most) {
    return whole(little_double(data + 8 * k), i, name, least, most);
  };
  const auto mask = [&](int k, const char* name, int bits) {
    return static_cast<uint64_t>(number(k, name, 0, (int64_t{1} << bits) - 1));
  };
  const uint64_t reads = mask(0, "reads", d.W());
  split_reads(reads, ints);
  ints[kBranches] = static_cast<int32_t>(mask(1, "branches", d.G));
  ints[kKnownReads] = static_cast<int32_t>(mask(2, "known_reads", 1 + d.L));
  ints[kDu] = static_cast<int32_t>(number(3, "du", -1, d.S - 1));
  ints[kDv] = static_cast<int32_t>(number(4, "dv", -1, d.S - 1));
  ints[kCall] = static_cast<int32_t>(number(5, "call", -1, kCallCap));
  for (int l = 0; l < d.L; ++l) {
    const int64_t id = number(6 + l, "noise id", -1, 0xFFFFFFFF);
    ints[kIds + l] = static_cast<int32_t>(static_cast<uint32_t>(id));
    if (id < 0 && (needs_of(d, structure_of(ints), false, true).noises >> l & 1) != 0)
      refuse(at_row(i) + "a noise is read that has no id; give it an id of 0 to 2^32-1");
  }
}

uint64_t slots_read(const Plan& plan, int i) {
  return plan.structure(i).reads >> 1 & low_bits(plan.dims.S);
}

uint64_t slots_written(const Plan& plan, int i) {
  const Structure s = plan.structure(i);
  return (s.du >= 0 ? uint64_t{1} << s.du : 0) | (s.dv >= 0 ? uint64_t{1} << s.dv : 0);
}

void check_rows(Plan& plan) {
  uint64_t written = 0;
  for (int i = 0; i < plan.rows; ++i) {
    if ((slots_read(plan, i) & ~written) != 0)
      refuse(at_row(i) + "reads a slot that no earlier row wrote");
    const Structure s = plan.structure(i);
    if (s.du >= 0 && s.du == s.dv)
      refuse(at_row(i) + "u and v are written to one slot; each needs its own");
    written |= slots_written(plan, i);
    plan.nfe += plan.row_ints(i)[kCall] >= 0;
  }
  const int last = plan.rows - 1;
  if (plan.row_ints(0)[kCall] >= 0 || plan.row_ints(last)[kCall] >= 0)
    refuse("the first or the last row calls a model; neither may");
  const Structure hold = plan.structure(last);
  if (hold.reads != 1 || plan.row_floats(last)[0] != 1 || slots_written(plan, last) != 0 ||
      hold.known_reads != 0)
    refuse("the last row does not hold; x' = x and nothing written is needed");
}

// Going back from the end, a slot is live where it will be read before it is written again.
void find_entries(Plan& plan) {
  plan.entry.assign(plan.rows, 0);
  uint64_t live = 0;
  for (int i = plan.rows - 1; i >= 0; --i) {
    live = (live & ~slots_written(plan, i)) | slots_read(plan, i);
    plan.entry[i] = live == 0 && i < plan.rows - 1;
  }
}

}  // namespace

Plan parse_plan(const uint8_t* data, size_t size) {
  Plan plan;
  const uint64_t note = read_header(data, size, plan);
  check_digest(data, size, plan);
  plan.floats.resize(static_cast<size_t>(plan.rows) * plan.dims.floats());
  plan.ints.resize(static_cast<size_t>(plan.rows) * plan.dims.ints());
  for (int i = 0; i < plan.rows; ++i) read_row(data + kHeader + i * row_bytes(plan.dims), i, plan);
  check_rows(plan);
  find_entries(plan);
  plan.note.assign(reinterpret_cast<const char*>(data + (size - note)), note);
  check_note(plan.note.data(), plan.note.size());
  return plan;
}

Plan load_plan(const char* path) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path, "rb"), &std::fclose);
  if (!file)
    throw Error(FS_E_FILE, std::string("fs_plan_load: ") + path +
                               " cannot be opened; a readable .fsplan file is accepted");
  std::vector<uint8_t> data;
  uint8_t piece[16384];
  size_t got;
  while ((got = std::fread(piece, 1, sizeof piece, file.get())) > 0) {
    data.insert(data.end(), piece, piece + got);
    if (data.size() > kLongest)
      refuse(std::string(path) + " is longer than any plan; a .fsplan file is accepted");
  }
  if (std::ferror(file.get()))
    throw Error(FS_E_FILE, std::string("fs_plan_load: ") + path +
                               " cannot be read; a readable .fsplan file is accepted");
  try {
    return parse_plan(data.data(), data.size());
  } catch (const Error& error) {  // the caller knows the file by its name
    throw Error(error.status(), std::string("fs_plan_load: ") + path + ": " + error.what());
  }
}

}  // namespace fs
