// fastsample.h: the kernels' arguments, checked once, here.

#include <initializer_list>
#include <limits>

#include "core/device.h"
#include "core/dtype.h"
#include "core/sample.h"
#include "guard.h"

namespace fs {
namespace {

constexpr int64_t kHuge = int64_t{1} << 62, kMost = std::numeric_limits<int32_t>::max();
constexpr int64_t kMostDevices = 1 << 16;

// The product of sizes, 0 if any is 0; it must fit a signed 64-bit number.
int64_t check_product(const char* where, const char* name, int64_t unit,
                      std::initializer_list<int64_t> sizes) {
  int64_t product = unit;
  for (const int64_t size : sizes) {
    if (size == 0) return 0;
    if (__builtin_mul_overflow(product, size, &product))
      fail(FS_E_ARG, "%s: %s would take more than 2^63 bytes; check the sizes", where, name);
  }
  return product;
}

// An array may be NULL where it is optional or where nothing is in it.
void check_array(const char* where, const char* name, const void* data, bool required, int64_t unit,
                 std::initializer_list<int64_t> sizes) {
  if (!data && !required) return;
  const int64_t bytes = check_product(where, name, unit, sizes);
  if (bytes == 0) return;
  if (!data)
    fail(FS_E_ARG, "%s: %s is NULL; an array of %lld bytes is needed", where, name, wide(bytes));
  if (reinterpret_cast<uintptr_t>(data) % static_cast<uint64_t>(unit) != 0) {
    fail(FS_E_ARG, "%s: %s is not aligned; a multiple of %lld bytes is needed", where, name,
         wide(unit));
  }
}

const Device& device_of(const char* where, int32_t device) {
  if (device == FS_CPU) return cpu_device;
#ifdef FS_CUDA_TEXT
  if (device == FS_CUDA) return cuda_device;
#else
  if (device == FS_CUDA)
    fail(FS_E_UNSUPPORTED,
         "%s: device is FS_CUDA; this library was built without CUDA, FS_CPU is accepted", where);
#endif
  fail(FS_E_ARG, "%s: device is %d; FS_CPU and FS_CUDA are accepted", where, device);
}

// `bytes`: what the device needs, a multiple of 8.
void check_workspace(const char* where, const void* data, int64_t room, int64_t bytes) {
  check_range(where, "workspace_bytes", room, bytes, kHuge);
  check_array(where, "workspace", data, true, 8, {bytes / 8});
}

void check_stride(const char* where, const char* name, const void* data, int64_t stride,
                  int64_t whole) {
  if (data && stride != 0 && stride != whole)
    fail(FS_E_ARG, "%s: %s is %lld; 0 or %lld is accepted", where, name, wide(stride), wide(whole));
}

void check_step_sizes(const char* where, const fs_step_args& a) {
  check_range(where, "state_dtype", a.state_dtype, FS_F32, FS_F64);
  check_range(where, "model_dtype", a.model_dtype, FS_F32, FS_BF16);
  check_dims(where, dims_of(a));
  check_range(where, "batch", a.batch, 0, kHuge);
  check_range(where, "elements", a.elements, 0, kHuge);
  check_range(where, "pool", a.pool, a.place ? 0 : a.batch, kHuge);
  check_range(where, "outputs", a.outputs, 0, kHuge);
  check_range(where, "copies", a.copies, 1, kMost);
  check_range(where, "table_rows", a.table_rows, 1, kMost);
  check_range(where, "threads", a.threads, 0, kMost);
  check_range(where, "reserved", a.reserved, 0, 0);
  check_range(where, "reserved_2", a.reserved_2, 0, 0);
  check_range(where, "one_row", a.one_row, 0, 1);
  check_range(where, "t_dtype", a.t_dtype, FS_F32, a.state_dtype);
  check_range(where, "groups", a.groups, 1, kHuge);
  check_range(where, "channels", a.channels, 0, kHuge);
  if (a.channels > 1 && a.elements % a.channels != 0)
    fail(FS_E_ARG, "%s: channels is %lld; a divisor of %lld elements is accepted", where,
         wide(a.channels), wide(a.elements));
  if (a.groups == 1) return;
  int64_t period;
  check_range(where, "inner", a.inner, 1, kHuge);
  if (__builtin_mul_overflow(a.groups, a.inner, &period) || a.elements % period != 0) {
    fail(FS_E_ARG,
         "%s: %lld elements are not a multiple of groups*inner = %lld*%lld; make them one", where,
         wide(a.elements), wide(a.groups), wide(a.inner));
  }
}

void check_step(const char* where, const fs_step_args& a, const Device&) {
  check_step_sizes(where, a);
  const int64_t T = dtype_size(a.state_dtype), F = dtype_size(a.model_dtype), B = a.batch,
                D = a.elements;
  const Dims d = dims_of(a);
  check_product(where, "a batch", T, {B, D});
  check_array(where, "table_f", a.table_f, true, T, {a.table_rows, d.floats()});
  check_array(where, "table_i", a.table_i, true, 4, {a.table_rows, d.ints()});
  check_array(where, "x", a.x, true, T, {a.pool, D});
  if (a.slot_stride != 0 && a.S > 0)
    check_range(where, "slot_stride", a.slot_stride, a.pool * D, kHuge / (T * a.S));
  check_array(where, "slots", a.slots, a.S > 0, T, {a.S, a.pool, D});
  for (int g = 0; g < a.G; ++g) check_array(where, "f", a.f[g], false, F, {a.outputs, D});
  check_array(where, "model_input", a.model_input, false, F, {a.copies, B, D});
  check_array(where, "x_in", a.x_in, false, T, {a.pool, D});
  check_array(where, "x_out", a.x_out, false, T, {a.pool, D});
  check_array(where, "row", a.row, !a.one_row, 4, {B, a.groups});
  check_array(where, "place", a.place, false, 4, {B});
  check_array(where, "f_index", a.f_index, false, 4, {a.G, B});
  check_array(where, "scale", a.scale, false, T, {B, a.K});
  check_array(where, "seed", a.seed, false, 8, {B});
  check_array(where, "stage", a.stage, false, 4, {B});
  check_array(where, "noise_scale", a.noise_scale, false, T, {B});
  check_array(where, "weights", a.weights, false, T, {B, 1 + a.G});
  check_array(where, "bound", a.bound, false, T, {B});
  for (int l = 0; l < a.L; ++l) check_array(where, "noise", a.noise[l], false, T, {B, D});
  check_array(where, "mask", a.mask, false, T, {B, D});
  check_array(where, "known", a.known, false, T, {B, D});
  check_array(where, "t_out", a.t_out, false, dtype_size(a.t_dtype), {B, a.groups, a.E});
  check_array(where, "preview", a.preview, false, T, {B, D});
  check_array(where, "status", a.status, false, 4, {B});
  check_stride(where, "mask_batch_stride", a.mask, a.mask_batch_stride, D);
  check_stride(where, "known_batch_stride", a.known, a.known_batch_stride, D);
}

void check_noise(const char* where, const fs_noise_args& a, const Device&) {
  check_range(where, "dtype", a.dtype, FS_F32, FS_F64);
  check_range(where, "batch", a.batch, 0, kHuge);
  check_range(where, "elements", a.elements, 0, kHuge);
  check_range(where, "threads", a.threads, 0, kMost);
  check_range(where, "reserved", a.reserved, 0, 0);
  check_array(where, "seed", a.seed, false, 8, {a.batch});
  check_array(where, "stage", a.stage, false, 4, {a.batch});
  check_array(where, "out", a.out, true, dtype_size(a.dtype), {a.batch, a.elements});
}

void check_moments_sizes(const char* where, const fs_moments_args& a) {
  check_range(where, "dtype", a.dtype, FS_F32, FS_BF16);
  check_range(where, "P", a.P, 1, FS_MAX_MOMENTS_A);
  check_range(where, "Q", a.Q, 0, FS_MAX_MOMENTS_B);
  check_range(where, "batch", a.batch, 0, kHuge);
  check_range(where, "elements", a.elements, 0, kHuge);
  check_range(where, "threads", a.threads, 0, kMost);
}

void check_moments(const char* where, const fs_moments_args& a, const Device& device) {
  check_moments_sizes(where, a);
  const int64_t unit = dtype_size(a.dtype);
  for (int p = 0; p < a.P; ++p) check_array(where, "a", a.a[p], true, unit, {a.batch, a.elements});
  for (int q = 0; q < a.Q; ++q) check_array(where, "b", a.b[q], true, unit, {a.batch, a.elements});
  check_array(where, "dots", a.dots, false, 8, {a.batch, a.P, a.Q});
  check_array(where, "max_abs", a.max_abs, false, 8, {a.batch, a.P});
  check_workspace(where, a.workspace, a.workspace_bytes, device.moments_workspace(a));
}

void check_cost_sizes(const char* where, const fs_cost_args& a) {
  check_range(where, "dtype", a.dtype, FS_F32, FS_BF16);
  check_range(where, "terms", a.terms, 1, FS_MAX_TERMS);
  check_range(where, "batch", a.batch, 0, kHuge);
  check_range(where, "I", a.I, 0, kMost);
  check_range(where, "J", a.J, 0, kMost);
  check_range(where, "D", a.D, 0, kHuge);
  check_range(where, "threads", a.threads, 0, kMost);
  check_range(where, "reserved", a.reserved, 0, 0);
  check_product(where, "the work", 8, {a.batch, a.I + 1, a.J + 1, a.D});
}

// What the cost matrix and the gather have in common.
void check_cost(const char* where, const fs_cost_args& a) {
  check_cost_sizes(where, a);
  for (int r = 0; r < a.terms; ++r)
    check_array(where, "U", a.U[r], true, dtype_size(a.dtype), {a.batch, a.I, a.D});
  check_array(where, "c", a.c, true, 8, {a.terms, a.I, a.J});
}

void check_cost_matrix(const char* where, const fs_cost_args& a, const Device& device) {
  check_cost(where, a);
  check_array(where, "X", a.X, true, dtype_size(a.dtype), {a.batch, a.J, a.D});
  check_array(where, "band", a.band, false, 4, {a.I, 2});
  check_array(where, "out", a.out, true, 8, {a.batch, a.I, a.J});
  if (!(a.p > 0 && a.p <= std::numeric_limits<double>::max()))
    fail(FS_E_ARG, "%s: p is %g; a finite power above 0 is accepted", where, a.p);
  check_workspace(where, a.workspace, a.workspace_bytes, device.cost_workspace(a));
}

void check_cost_gather(const char* where, const fs_cost_args& a, const Device&) {
  check_cost(where, a);
  check_array(where, "i_star", a.i_star, true, 4, {a.J, a.i_star_batch_stride == 0 ? 1 : a.batch});
  check_array(where, "out", a.out, true, dtype_size(a.dtype), {a.batch, a.J, a.D});
  check_stride(where, "i_star_batch_stride", a.i_star, a.i_star_batch_stride, a.J);
}

// The body of every function below: body(args, kernels of their device).
template <class Args, class Body>
int call(const char* where, const Args* args, const Body& body) {
  return guard(where, [&] {
    Args room;
    const Args& a = whole(where, args, room);
    check_range(where, "gpu", a.gpu, 0, kMostDevices);
    body(a, device_of(where, a.device));
  });
}

template <class Args>
int launch(const char* where, const Args* args,
           void (*check)(const char*, const Args&, const Device&),
           void (*Device::*kernel)(const Args&)) {
  return call(where, args, [&](const Args& a, const Device& device) {
    check(where, a, device);
    (device.*kernel)(a);
  });
}

template <class Args>
int workspace(const char* where, const Args* args, int64_t* bytes,
              void (*check_sizes)(const char*, const Args&),
              int64_t (*Device::*kernel)(const Args&)) {
  return call(where, args, [&](const Args& a, const Device& device) {
    check_sizes(where, a);
    check_array(where, "bytes", bytes, true, 8, {1});
    *bytes = (device.*kernel)(a);
  });
}

}  // namespace
}  // namespace fs

using fs::Device;
using fs::launch;
using fs::workspace;

extern "C" {

int fs_step(const fs_step_args* args) {
  return launch("fs_step", args, fs::check_step, &Device::step);
}

int fs_noise_fill(const fs_noise_args* args) {
  return launch("fs_noise_fill", args, fs::check_noise, &Device::noise);
}

int fs_moments(const fs_moments_args* args) {
  return launch("fs_moments", args, fs::check_moments, &Device::moments);
}

int fs_moments_workspace(const fs_moments_args* args, int64_t* bytes) {
  return workspace("fs_moments_workspace", args, bytes, fs::check_moments_sizes,
                   &Device::moments_workspace);
}

int fs_cost_matrix(const fs_cost_args* args) {
  return launch("fs_cost_matrix", args, fs::check_cost_matrix, &Device::cost_matrix);
}

int fs_cost_workspace(const fs_cost_args* args, int64_t* bytes) {
  return workspace("fs_cost_workspace", args, bytes, fs::check_cost_sizes, &Device::cost_workspace);
}

int fs_cost_gather(const fs_cost_args* args) {
  return launch("fs_cost_gather", args, fs::check_cost_gather, &Device::cost_gather);
}

}  // extern "C"
