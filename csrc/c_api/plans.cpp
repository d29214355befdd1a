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

void give(Plan&& plan, fs_plan** out) { *out = new fs_plan{kLive, std::move(plan)}; }

Dims checked_dims(const char* where, const fs_dims* given) {
  fs_dims room;
  const fs_dims* dims = &whole(where, given, room);
  const struct {
    const char* name;
    int value, most;
  } sizes[] = {{"S", dims->S, FS_MAX_SLOTS},
               {"G", dims->G, FS_MAX_BRANCHES},
               {"L", dims->L, FS_MAX_NOISES},
               {"K", dims->K, FS_MAX_SCALES},
               {"E", dims->E, FS_MAX_SCALARS}};
  for (const auto& size : sizes) {
    if (size.value < 0 || size.value > size.most)
      fail(FS_E_ARG, "%s: %s is %d; 0 to %d is accepted", where, size.name, size.value, size.most);
  }
  return {dims->S, dims->G, dims->L, dims->K, dims->E};
}

void check_room(const char* name, const void* data, int64_t room, int64_t needed, size_t unit) {
  if (!data || reinterpret_cast<uintptr_t>(data) % unit != 0) {
    fail(FS_E_ARG,
         "fs_plan_pack: %s is NULL or not aligned to %zu bytes; an array of %lld numbers is needed",
         name, unit, static_cast<long long>(needed));
  }
  if (room < needed)
    fail(FS_E_ARG, "fs_plan_pack: %s has room for %lld numbers; %lld are needed", name,
         static_cast<long long>(room), static_cast<long long>(needed));
}

}  // namespace

void set_last_error(const char* sentence) noexcept {
  std::snprintf(last_error, sizeof last_error, "%s", sentence);
}

}  // namespace fs

using fs::fail;
using fs::guard;

extern "C" {

int fs_abi_version(void) { return FS_ABI_VERSION; }

const char* fs_version(void) { return FS_VERSION_TEXT; }

const char* fs_last_error(void) { return fs::last_error; }

int fs_plan_load(const char* path, fs_plan** plan) {
  return guard("fs_plan_load", [&] {
    if (!plan) fail(FS_E_ARG, "fs_plan_load: plan is NULL; the address of a handle is needed");
    *plan = nullptr;
    if (!path) fail(FS_E_ARG, "fs_plan_load: path is NULL; a file name is needed");
    fs::give(fs::load_plan(path), plan);
  });
}

int fs_plan_parse(const void* data, size_t size, fs_plan** plan) {
  return guard("fs_plan_parse", [&] {
    if (!plan) fail(FS_E_ARG, "fs_plan_parse: plan is NULL; the address of a handle is needed");
    *plan = nullptr;
    if (!data && size > 0)
      fail(FS_E_ARG,
           "fs_plan_parse: data is NULL with %zu bytes; the bytes of a .fsplan file are needed",
           size);
    static const uint8_t nothing = 0;
    fs::give(fs::parse_plan(data ? static_cast<const uint8_t*>(data) : &nothing, size), plan);
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
    fs_info room, *info = &fs::whole("fs_plan_info", out, room);
    const fs::Dims& d = plan.dims;
    info->rows = plan.rows;
    info->S = d.S, info->G = d.G, info->L = d.L, info->K = d.K, info->E = d.E;
    info->operands = d.W();
    info->nfe = plan.nfe;
    info->note_bytes = static_cast<int64_t>(plan.note.size());
    std::memcpy(info->sha256, plan.sha256.data(), sizeof info->sha256);
    fs::give_back(info, out);
  });
}

int fs_plan_row(const fs_plan* handle, int64_t i, fs_row_info* out) {
  return guard("fs_plan_row", [&] {
    const fs::Plan& plan = fs::plan_of("fs_plan_row", handle);
    fs_row_info room, *row = &fs::whole("fs_plan_row", out, room);
    if (i < 0 || i >= plan.rows)
      fail(FS_E_ARG, "fs_plan_row: row %lld of %d; 0 to %d is accepted", static_cast<long long>(i),
           plan.rows, plan.rows - 1);
    const fs::Dims& d = plan.dims;
    const double* floats = plan.row_floats(static_cast<int>(i));
    const int32_t* ints = plan.row_ints(static_cast<int>(i));
    row->call = ints[fs::kCall];
    row->entry = plan.entry[static_cast<size_t>(i)];
    row->du = ints[fs::kDu], row->dv = ints[fs::kDv];
    row->branches = static_cast<uint32_t>(ints[fs::kBranches]);
    row->known_reads = static_cast<uint32_t>(ints[fs::kKnownReads]);
    row->reads = fs::join_reads(ints[fs::kReadsLow], ints[fs::kReadsHigh]);
    // An id of 2^32-1 is held as -1, which means none unless the noise is read.
    for (int l = 0; l < FS_MAX_NOISES; ++l) {
      const bool read = l < d.L && ((row->reads >> d.noise(l) & 1) != 0 ||
                                    (row->known_reads >> (1 + l) & 1) != 0);
      row->ids[l] = l >= d.L || (ints[fs::kIds + l] == -1 && !read)
                        ? -1
                        : static_cast<int64_t>(static_cast<uint32_t>(ints[fs::kIds + l]));
    }
    row->p = floats[d.p()], row->q = floats[d.q()], row->clip = floats[d.clip()],
    row->c = floats[d.c()];
    for (int e = 0; e < FS_MAX_SCALARS; ++e) row->t[e] = e < d.E ? floats[d.t() + e] : 0;
    row->dx = floats[d.dx()], row->dm = floats[d.dx() + 1];
    row->alpha = floats[d.alpha()], row->sigma = floats[d.alpha() + 1];
    fs::give_back(row, out);
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
  thread_local char text[512];
  std::snprintf(text, sizeof text,
                "{\"version\": \"%s\", \"abi\": %d, \"compiler\": \"%s\", \"flags\": \"%s\", "
                "\"isa\": \"%s\", \"openmp\": %s, \"threads\": %d, "
                "\"cuda\": \"off: no CUDA kernels in this version\"}",
                FS_VERSION_TEXT, FS_ABI_VERSION, FS_COMPILER_TEXT, FS_FLAGS_TEXT, fs::cpu_isa(),
                fs::cpu_has_openmp() ? "true" : "false", fs::cpu_threads());
  return text;
}

}  // extern "C"
