// fastsample: the C interface for C++17: plans, tables of plans, and errors as exceptions. Header
// only; needs nothing but the standard library and libfastsample.
//
//     fastsample::Plan plan = fastsample::Plan::load("mine.fsplan");
//     fastsample::Table table;
//     const int64_t first = table.add(plan);            // number of the plan's row 0 in the table
//     auto args = fastsample::step_args();              // fs_step_args, everything else zero
//     table.put_into(args);                             // table_f, table_i, table_rows, S G L K E
//     args.x = ...;
//     fastsample::check(fs_step(&args));                // throws fastsample::Error
//
// What the structs and functions mean stands in fastsample.h; engine.hpp serves many requests.
#ifndef FASTSAMPLE_FASTSAMPLE_HPP
#define FASTSAMPLE_FASTSAMPLE_HPP

#include <fastsample/fastsample.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace fastsample {

// A status other than FS_OK, with its sentence: where, what was wrong, what is accepted.
class FS_API Error : public std::runtime_error {
 public:
  Error(int status, const std::string& sentence) : std::runtime_error(sentence), status_(status) {}
  int status() const noexcept { return status_; }  // fs_status

 private:
  int status_;
};

// What a function of the C interface returned: Error with this thread's last sentence, unless it
// is FS_OK.
inline void check(int status) {
  if (status != FS_OK) throw Error(status, fs_last_error());
}

// A struct of the C interface whose first field says its size; everything else is zero.
template <class Struct>
Struct sized() {
  Struct made{};
  made.struct_size = sizeof(Struct);
  return made;
}

// The arguments of fs_step for a batch whose samples are each in one group.
inline fs_step_args step_args() {
  fs_step_args args = sized<fs_step_args>();
  args.groups = args.copies = 1;
  return args;
}

// A plan, read and checked. Copies share one; it never changes, and any number of threads may use
// it at once.
class Plan {
 public:
  // Errors: FS_E_FILE, FS_E_FORMAT, FS_E_MEMORY.
  static Plan load(const std::string& path) {
    fs_plan* handle = nullptr;
    check(fs_plan_load(path.c_str(), &handle));
    return Plan(handle);
  }
  static Plan parse(const void* bytes, size_t size) {
    fs_plan* handle = nullptr;
    check(fs_plan_parse(bytes, size, &handle));
    return Plan(handle);
  }

  const fs_plan* get() const noexcept { return held_->handle.get(); }
  const fs_info& info() const noexcept { return held_->info; }
  const std::vector<fs_row_info>& rows() const noexcept { return held_->rows; }
  fs_dims dims() const noexcept {
    const fs_info& own = info();
    return {sizeof(fs_dims), own.S, own.G, own.L, own.K, own.E};
  }
  const char* note() const noexcept { return fs_plan_note(get()); }  // JSON

  // What row 0 multiplies unit noise by. Error: the plan begins from an image.
  double init_scale() const {
    double scale = 0;
    check(fs_plan_init_scale(get(), &scale));
    return scale;
  }
  bool begins_from_image() const noexcept { return rows().front().sigma == 0; }

  // Bit g: row i needs the output of branch g, so the model is asked for it; 0 where it calls none.
  uint32_t asks(int64_t i) const {
    const fs_row_info& row = rows().at(static_cast<size_t>(i));
    const auto own = static_cast<uint32_t>(row.reads >> (3 + info().S));
    return row.call < 0 ? 0 : (row.branches | own) & ((1u << info().G) - 1);
  }

  // The same numbers and the same note.
  friend bool operator==(const Plan& one, const Plan& other) noexcept {
    return std::memcmp(one.info().sha256, other.info().sha256, sizeof one.info().sha256) == 0;
  }
  friend bool operator!=(const Plan& one, const Plan& other) noexcept { return !(one == other); }

 private:
  struct Free {
    void operator()(fs_plan* handle) const noexcept { fs_plan_free(handle); }
  };
  struct Held {
    std::unique_ptr<fs_plan, Free> handle;
    fs_info info;
    std::vector<fs_row_info> rows;
  };
  std::shared_ptr<const Held> held_;

  explicit Plan(fs_plan* handle) {
    std::unique_ptr<fs_plan, Free> owner(handle);
    auto held = std::make_shared<Held>();
    held->handle = std::move(owner);
    held->info = sized<fs_info>();
    check(fs_plan_info(handle, &held->info));
    held->rows.assign(static_cast<size_t>(held->info.rows), sized<fs_row_info>());
    for (int64_t i = 0; i < held->info.rows; ++i)
      check(fs_plan_row(handle, i, &held->rows[static_cast<size_t>(i)]));
    held_ = std::move(held);
  }
};

// The rows of several plans, one plan after the other, with the smallest dims that hold them all:
// what fs_step reads when each sample of a batch follows a plan of its own. Equal plans stand there
// once. A plan's rows keep their numbers while it has users; those without are written over before
// the table grows. One thread at a time.
class Table {
 public:
  // dtype: the state's, FS_F32 or FS_F64; rows: as many are there from the beginning.
  explicit Table(int32_t dtype = FS_F32, int64_t rows = 1024) : dtype_(dtype), least_(rows) {}

  // Number of the plan's row 0; row i has that number plus i. The plan has one user more. masked
  // false: rows that blend no known image, for a sample without a mask in a batch where others have
  // one. Error: FS_E_UNSUPPORTED, a number beyond float32; std::bad_alloc. The table is then as it
  // was.
  int64_t add(const Plan& plan, bool masked = true) {
    for (Entry& entry : entries_) {
      if (entry.is(plan, masked)) return ++entry.users, entry.first;
    }
    Table grown(*this);
    grown.put(plan, masked);
    *this = std::move(grown);
    return add(plan, masked);
  }

  bool holds(const Plan& plan, bool masked = true) const noexcept {
    const auto same = [&](const Entry& entry) { return entry.is(plan, masked); };
    return std::any_of(entries_.begin(), entries_.end(), same);
  }

  // One user less. The plan must have been added.
  void remove(const Plan& plan, bool masked = true) noexcept {
    for (Entry& entry : entries_) {
      if (entry.is(plan, masked) && entry.users > 0) --entry.users;
    }
  }

  // Behind the last row of the last plan.
  int64_t end() const noexcept {
    return entries_.empty() ? 0 : entries_.back().first + entries_.back().plan.info().rows;
  }

  const fs_dims& dims() const noexcept { return dims_; }
  int32_t dtype() const noexcept { return dtype_; }
  int64_t rows() const noexcept { return rows_; }
  const void* floats() const noexcept { return floats_.data(); }  // [rows, WF] of dtype
  const int32_t* ints() const noexcept { return ints_.data(); }   // [rows, WI]
  size_t float_bytes() const noexcept { return floats_.size(); }
  size_t int_bytes() const noexcept { return ints_.size() * sizeof(int32_t); }

  // Another number after every add() that wrote: what was copied elsewhere is then out of date.
  uint64_t version() const noexcept { return version_; }

  // The table and its dims, for a state of this dtype in the host's memory.
  void put_into(fs_step_args& args) const noexcept {
    args.state_dtype = dtype_;
    args.table_f = floats(), args.table_i = ints(), args.table_rows = rows_;
    args.S = dims_.S, args.G = dims_.G, args.L = dims_.L, args.K = dims_.K, args.E = dims_.E;
  }

 private:
  struct Entry {
    Plan plan;
    bool masked;
    int64_t first, users;
    bool is(const Plan& other, bool with) const noexcept { return plan == other && masked == with; }
  };
  int32_t dtype_;
  int64_t least_, rows_ = 0, wide_f_ = 0, wide_i_ = 0;
  uint64_t version_ = 0;
  fs_dims dims_ = sized<fs_dims>();
  std::vector<Entry> entries_;  // in the order of their rows
  std::vector<std::byte> floats_;
  std::vector<int32_t> ints_;

  size_t unit() const noexcept { return dtype_ == FS_F64 ? sizeof(double) : sizeof(float); }

  void put(const Plan& plan, bool masked) {
    const int64_t count = plan.info().rows;
    int64_t first = gap(count);
    if (first + count > rows_) {
      const auto unused = [](const Entry& entry) { return entry.users == 0; };
      entries_.erase(std::remove_if(entries_.begin(), entries_.end(), unused), entries_.end());
      first = gap(count);
    }
    const auto after = std::find_if(entries_.begin(), entries_.end(),
                                    [&](const Entry& entry) { return entry.first > first; });
    const Entry& put = *entries_.insert(after, Entry{plan, masked, first, 0});
    ++version_;
    if (widen(plan.dims()) || first + count > rows_) return pack_all(first + count);
    pack(put);
  }

  // The first run of `count` rows that no plan has, or what lies behind them all.
  int64_t gap(int64_t count) const noexcept {
    int64_t end = 0;
    for (const Entry& entry : entries_) {
      if (entry.first - end >= count) break;
      end = entry.first + entry.plan.info().rows;
    }
    return end;
  }

  bool widen(const fs_dims& dims) noexcept {
    bool changed = rows_ == 0;
    const auto raise = [&changed](int32_t& own, int32_t size) {
      changed = changed || size > own;
      own = std::max(own, size);
    };
    raise(dims_.S, dims.S), raise(dims_.G, dims.G), raise(dims_.L, dims.L);
    raise(dims_.K, dims.K), raise(dims_.E, dims.E);
    return changed;
  }

  // Every plan anew, in a table of at least so many rows. Rows of zeros are refused by fs_step.
  void pack_all(int64_t rows) {
    check(fs_table_size(&dims_, &wide_f_, &wide_i_));
    if (rows > rows_) rows_ = std::max({2 * rows_, rows, least_});
    floats_.assign(static_cast<size_t>(rows_ * wide_f_) * unit(), std::byte{0});
    ints_.assign(static_cast<size_t>(rows_ * wide_i_), 0);
    for (const Entry& entry : entries_) pack(entry);
  }

  void pack(const Entry& entry) {
    constexpr int64_t known_reads = 3;  // among a row's ints
    const int64_t count = entry.plan.info().rows;
    std::byte* const floats = floats_.data() + static_cast<size_t>(entry.first * wide_f_) * unit();
    int32_t* const ints = ints_.data() + entry.first * wide_i_;
    check(fs_plan_pack(entry.plan.get(), &dims_, dtype_, floats, count * wide_f_, ints,
                       count * wide_i_));
    for (int64_t row = 0; row < count && !entry.masked; ++row)
      ints[row * wide_i_ + known_reads] = 0;
  }
};

}  // namespace fastsample
#endif
