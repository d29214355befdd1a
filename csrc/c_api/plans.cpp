// fastsample.h: status, errors and plans. Arguments are checked here and in kernels.cpp, nowhere
// below.

#include "guard.h"

#include <cstdio>
#include <cstring>
#include <memory>
#include <string>

#include "core/plan.h"
#include "cpu/kernels.h"

struct fs_plan {
  uint64_t magic;
  fs::Plan plan;
};

namespace fs {
namespace {

constexpr uint64_t kLive = 0x4E414C5053466C69;  // overwritten when the plan is freed
constexpr uint64_t kDead = 0x4445414444454144;

thread_local char last_error[512] = "";

const Plan& plan_of(const char* where, const fs_plan* handle) {
  if (!handle || reinterpret_cast<uintptr_t>(handle) % alignof(fs_plan) != 0 ||
      handle->magic != kLive) {
    fail(FS_E_HANDLE,
         "%s: not a live plan; a handle from fs_plan_load or fs_plan_parse that was not freed is "
         "accepted",
         where);
  }
  return handle->plan;
}

// fs_plan_load and fs_plan_parse: *out = plan(), NULL on failure.
template <class Make>
int make(const char* where, fs_plan** out, const Make& plan) {
  return guard(where, [&] {
    if (!out) fail(FS_E_ARG, "%s: plan is NULL; the address of a handle is needed", where);
    *out = nullptr;
    *out = new fs_plan{kLive, plan()};
  });
}

Dims checked_dims(const char* where, const fs_dims* given) {
  fs_dims room;
  const fs_dims& dims = whole(where, given, room);
  const Dims d{dims.S, dims.G, dims.L, dims.K, dims.E};
  check_dims(where, d);
  return d;
}

void check_room(const char* name, const void* data, int64_t room, int64_t needed, size_t unit) {
  if (!data || reinterpret_cast<uintptr_t>(data) % unit != 0) {
    fail(FS_E_ARG,
         "fs_plan_pack: %s is NULL or not aligned to %zu bytes; an array of %lld numbers is needed",
         name, unit, wide(needed));
  }
  if (room < needed)
    fail(FS_E_ARG, "fs_plan_pack: %s has room for %lld numbers; %lld are needed", name, wide(room),
         wide(needed));
}

}  // namespace

int refused(fs_status status, const char* sentence, const char* where) noexcept {
  std::snprintf(last_error, sizeof last_error, "%s%s", where, sentence);
  return status;
}

}  // namespace fs

using fs::fail;
using fs::guard;

extern "C" {

int fs_abi_version(void) { return FS_ABI_VERSION; }

const char* fs_version(void) { return FS_VERSION_TEXT; }

const char* fs_last_error(void) { return fs::last_error; }

int fs_plan_load(const char* path, fs_plan** plan) {
  return fs::make("fs_plan_load", plan, [&] {
    if (!path) fail(FS_E_ARG, "fs_plan_load: path is NULL; a file name is needed");
    return fs::load_plan(path);
  });
}

int fs_plan_parse(const void* data, size_t size, fs_plan** plan) {
  return fs::make("fs_plan_parse", plan, [&] {
    if (!data && size > 0)
      fail(FS_E_ARG,
           "fs_plan_parse: data is NULL with %zu bytes; the bytes of a .fsplan file are needed",
           size);
    return fs::parse_plan(static_cast<const uint8_t*>(data), size);
  });
}

int fs_plan_free(fs_plan* plan) {
  return guard("fs_plan_free", [&] {
    if (!plan) return;
    fs::plan_of("fs_plan_free", plan);
    *const_cast<volatile uint64_t*>(&plan->magic) =
        fs::kDead;  // volatile: a store before a delete may be dropped
    delete plan;
  });
}

int fs_plan_info(const fs_plan* handle, fs_info* out) {
  return guard("fs_plan_info", [&] {
    const fs::Plan& plan = fs::plan_of("fs_plan_info", handle);
    fs::check_struct("fs_plan_info", out);
    const fs::Dims& d = plan.dims;
    fs_info info = {out->struct_size, plan.rows, d.S, d.G, d.L, d.K, d.E, d.W(), plan.nfe, 0, {}};
    info.note_bytes = static_cast<int64_t>(plan.note.size());
    std::memcpy(info.sha256, plan.sha256.data(), sizeof info.sha256);
    std::memcpy(out, &info, info.struct_size);
  });
}

int fs_plan_row(const fs_plan* handle, int64_t i, fs_row_info* out) {
  return guard("fs_plan_row", [&] {
    const fs::Plan& plan = fs::plan_of("fs_plan_row", handle);
    fs::check_struct("fs_plan_row", out);
    if (i < 0 || i >= plan.rows)
      fail(FS_E_ARG, "fs_plan_row: row %lld of %d; 0 to %d is accepted", fs::wide(i), plan.rows,
           plan.rows - 1);
    const fs::Dims& d = plan.dims;
    const double* floats = plan.row_floats(static_cast<int>(i));
    const int32_t* ints = plan.row_ints(static_cast<int>(i));
    const fs::Structure s = plan.structure(static_cast<int>(i));
    fs_row_info row = {};
    row.struct_size = out->struct_size;
    row.call = ints[fs::kCall], row.entry = plan.entry[static_cast<size_t>(i)];
    row.du = s.du, row.dv = s.dv;
    row.reads = s.reads, row.branches = s.branches, row.known_reads = s.known_reads;
    // An id of 2^32-1 is held as -1, which means none unless the noise is read.
    const uint32_t noises = fs::needs_of(d, s, false, true).noises;
    for (int l = 0; l < FS_MAX_NOISES; ++l) {
      const int32_t id = l < d.L ? ints[fs::kIds + l] : -1;
      row.ids[l] = id == -1 && (noises >> l & 1) == 0 ? -1 : int64_t{static_cast<uint32_t>(id)};
    }
    row.p = floats[d.p()], row.q = floats[d.q()], row.clip = floats[d.clip()],
    row.c = floats[d.c()];
    for (int e = 0; e < d.E; ++e) row.t[e] = floats[d.t() + e];
    row.dx = floats[d.dx()], row.dm = floats[d.dx() + 1];
    row.alpha = floats[d.alpha()], row.sigma = floats[d.alpha() + 1];
    std::memcpy(out, &row, row.struct_size);
  });
}

int fs_plan_init_scale(const fs_plan* handle, double* scale) {
  return guard("fs_plan_init_scale", [&] {
    const fs::Plan& plan = fs::plan_of("fs_plan_init_scale", handle);
    if (!scale)
      fail(FS_E_ARG, "fs_plan_init_scale: scale is NULL; the address of a double is needed");
    const double* row = plan.row_floats(0);
    if (row[plan.dims.alpha() + 1] == 0)
      fail(FS_E_ARG,
           "fs_plan_init_scale: the plan was made with start= and begins from an image; a plan "
           "that begins from noise has one");
    *scale = (plan.row_ints(0)[fs::kReadsLow] & 1) != 0 ? row[0] : 0;
  });
}

const char* fs_plan_note(const fs_plan* handle) {
  const char* note = nullptr;
  guard("fs_plan_note", [&] { note = fs::plan_of("fs_plan_note", handle).note.c_str(); });
  return note;
}

int fs_table_size(const fs_dims* dims, int64_t* floats, int64_t* ints) {
  return guard("fs_table_size", [&] {
    const fs::Dims d = fs::checked_dims("fs_table_size", dims);
    if (!floats || !ints)
      fail(FS_E_ARG, "fs_table_size: floats or ints is NULL; two addresses are needed");
    *floats = d.floats();
    *ints = d.ints();
  });
}

int fs_plan_pack(const fs_plan* handle, const fs_dims* dims, int32_t dtype, void* floats,
                 int64_t floats_size, int32_t* ints, int64_t ints_size) {
  return guard("fs_plan_pack", [&] {
    const fs::Plan& plan = fs::plan_of("fs_plan_pack", handle);
    const fs::Dims &own = plan.dims, d = dims ? fs::checked_dims("fs_plan_pack", dims) : own;
    if (d.S < own.S || d.G < own.G || d.L < own.L || d.K < own.K || d.E < own.E) {
      fail(FS_E_ARG,
           "fs_plan_pack: dims S,G,L,K,E are %d,%d,%d,%d,%d; at least the plan's own "
           "%d,%d,%d,%d,%d are needed",
           d.S, d.G, d.L, d.K, d.E, own.S, own.G, own.L, own.K, own.E);
    }
    if (dtype != FS_F32 && dtype != FS_F64)
      fail(FS_E_ARG, "fs_plan_pack: dtype %d; FS_F32 and FS_F64 are accepted", dtype);
    fs::check_room("floats", floats, floats_size, int64_t{plan.rows} * d.floats(),
                   dtype == FS_F64 ? 8 : 4);
    fs::check_room("ints", ints, ints_size, int64_t{plan.rows} * d.ints(), 4);
    if (dtype == FS_F64) fs::pack_plan(plan, d, static_cast<double*>(floats), ints);
    else fs::pack_plan(plan, d, static_cast<float*>(floats), ints);
  });
}

const char* fs_build_info(void) {
#ifdef FS_CUDA_TEXT
  const char* cuda = FS_CUDA_TEXT;
#else
  const char* cuda = "off";
#endif
  thread_local char text[640];
  std::snprintf(text, sizeof text,
                "{\"version\": \"%s\", \"abi\": %d, \"compiler\": \"%s\", \"flags\": \"%s\", "
                "\"isa\": \"%s\", \"openmp\": %s, \"threads\": %d, "
                "\"cuda\": \"%s\"}",
                FS_VERSION_TEXT, FS_ABI_VERSION, FS_COMPILER_TEXT, FS_FLAGS_TEXT, fs::cpu_isa(),
                fs::cpu_has_openmp() ? "true" : "false", fs::cpu_threads(), cuda);
  return text;
}

}  // extern "C"
