// Hostile input, meant to run under AddressSanitizer and UndefinedBehaviorSanitizer:
//   hostile <plan.fsplan>
// Here every argument of every kernel call is spoilt, one at a time, and must give a status and a
// sentence.

#include <functional>
#include <type_traits>
#include <utility>
#include <vector>

#include "hostile.h"

namespace {

using Spoilers = std::vector<std::pair<const char*, std::function<void()>>>;

template <class Args>
void spoil_each(const char* name, int (*call)(const Args*), Args& args, const Spoilers& spoilers) {
  const Args good = args;
  expect(call(&args) == FS_OK, std::string(name) + ": the call itself");
  expect_refused(call(nullptr), std::string(name) + ": NULL");
  for (const auto& [what, spoil] : spoilers) {
    args = good;
    spoil();
    expect_refused(call(&args), std::string(name) + ": " + what);
  }
  args = good;
  expect(call(&args) == FS_OK, std::string(name) + ": the call again");
}

constexpr int64_t kHuge = int64_t{1} << 61;

#define SPOIL(field, value) {#field " = " #value, [&] { a.field = value; }}
#define SPOIL_SIZE(field) \
  SPOIL(field, -1), SPOIL(field, kHuge), SPOIL(field, std::numeric_limits<int64_t>::min())
#define SPOIL_COUNT(field, most) \
  SPOIL(field, -1), SPOIL(field, (most) + 1), SPOIL(field, std::numeric_limits<int32_t>::min())
#define SPOIL_POINTER(field)                                                 \
  {#field " off by one", [&] {                                               \
     a.field = reinterpret_cast<std::remove_reference_t<decltype(a.field)>>( \
         reinterpret_cast<uintptr_t>(a.field) + 1);                          \
   }}
#define SPOIL_HEAD                                                                           \
  SPOIL(struct_size, 0), SPOIL(struct_size, 4096), SPOIL(device, FS_CUDA), SPOIL(device, 9), \
      SPOIL(gpu, -1)

void spoil_step() {
  constexpr int B = 2, D = 12;
  fs_dims dims = sized<fs_dims>();
  dims.S = dims.L = dims.K = 1, dims.G = 2, dims.E = 1;
  int64_t floats, ints;
  expect(fs_table_size(&dims, &floats, &ints) == FS_OK, "size");
  std::vector<float> table(static_cast<size_t>(floats), 0.1f),
      room(static_cast<size_t>(B * D), 0.5f), more(room), slots(room), input(room),
      small(B * 3, 0.5f);
  std::vector<int32_t> words(static_cast<size_t>(ints)), row(B), place{1, 0}, index(2 * B),
      status(B);
  std::vector<uint64_t> seed{1, 2};
  words[0] = 127, words[2] = 3, words[3] = 3, words[4] = 0, words[5] = -1;
  fs_step_args a = sized<fs_step_args>();
  a.batch = a.pool = a.outputs = B, a.elements = D, a.groups = a.copies = 1;
  a.S = 1, a.G = 2, a.L = 1, a.K = 1, a.E = 1;
  a.table_rows = 1, a.table_f = table.data(), a.table_i = words.data(), a.x = room.data(),
  a.slots = slots.data(), a.model_input = input.data();
  a.f[0] = a.f[1] = a.noise[0] = a.mask = a.known = more.data(),
  a.mask_batch_stride = a.known_batch_stride = D;
  a.row = row.data(), a.place = place.data(), a.f_index = index.data(), a.status = status.data(),
  a.seed = seed.data();
  a.scale = a.noise_scale = a.weights = a.bound = small.data();
  std::vector<float> preview(room), times(B), in(room), out(room);
  std::vector<uint32_t> stage(B);
  a.preview = preview.data(), a.t_out = times.data(), a.stage = stage.data();
  a.x_in = in.data(), a.x_out = out.data();
  spoil_each("fs_step", fs_step, a,
             {SPOIL_HEAD,
              SPOIL(state_dtype, FS_F16),
              SPOIL(state_dtype, -1),
              SPOIL(model_dtype, 4),
              SPOIL(model_dtype, -1),
              SPOIL_SIZE(batch),
              SPOIL_SIZE(elements),
              SPOIL_SIZE(pool),
              SPOIL_SIZE(outputs),
              SPOIL_SIZE(groups),
              SPOIL(groups, 0),
              SPOIL(groups, 5),
              SPOIL_SIZE(table_rows),
              SPOIL_SIZE(slot_stride),
              SPOIL(slot_stride, B * D - 1),
              SPOIL_SIZE(channels),
              SPOIL(channels, 5),
              SPOIL(table_rows, 0),
              SPOIL(copies, 0),
              SPOIL_COUNT(S, FS_MAX_SLOTS),
              SPOIL_COUNT(G, FS_MAX_BRANCHES),
              SPOIL_COUNT(L, FS_MAX_NOISES),
              SPOIL_COUNT(K, FS_MAX_SCALES),
              SPOIL_COUNT(E, FS_MAX_SCALARS),
              SPOIL(threads, -1),
              SPOIL(reserved, 1),
              SPOIL(reserved_2, 1),
              SPOIL(one_row, 2),
              SPOIL(one_row, -1),
              SPOIL(t_dtype, FS_F64),
              SPOIL(t_dtype, -1),
              SPOIL(mask_batch_stride, 1),
              SPOIL(known_batch_stride, -D),
              SPOIL(table_f, nullptr),
              SPOIL(table_i, nullptr),
              SPOIL(x, nullptr),
              SPOIL(slots, nullptr),
              SPOIL(row, nullptr),
              SPOIL_POINTER(table_f),
              SPOIL_POINTER(table_i),
              SPOIL_POINTER(x),
              SPOIL_POINTER(x_in),
              SPOIL_POINTER(x_out),
              SPOIL_POINTER(stage),
              SPOIL_POINTER(slots),
              SPOIL_POINTER(f[0]),
              SPOIL_POINTER(f[1]),
              SPOIL_POINTER(model_input),
              SPOIL_POINTER(row),
              SPOIL_POINTER(place),
              SPOIL_POINTER(f_index),
              SPOIL_POINTER(scale),
              SPOIL_POINTER(seed),
              SPOIL_POINTER(noise_scale),
              SPOIL_POINTER(weights),
              SPOIL_POINTER(bound),
              SPOIL_POINTER(noise[0]),
              SPOIL_POINTER(mask),
              SPOIL_POINTER(known),
              SPOIL_POINTER(t_out),
              SPOIL_POINTER(preview),
              SPOIL_POINTER(status)});
  a.groups = 2, a.inner = 0;
  expect_refused(fs_step(&a), "fs_step: inner = 0");
  a.inner = kHuge;
  expect_refused(fs_step(&a), "fs_step: inner huge");
  a.groups = 1;
  a.one_row = 1, a.row = nullptr;
  for (const int32_t number :
       {-1, 1, std::numeric_limits<int32_t>::min(), std::numeric_limits<int32_t>::max()}) {
    a.row_number = number, status.assign(B, 0);
    expect(fs_step(&a) == FS_OK && (status[1] & 0xFF) == FS_BAD_ROW, "fs_step: row_number");
  }
  a.one_row = 0, a.row = row.data();
  // Indices a kernel follows are not arguments: a bad one marks its sample and touches nothing.
  a.x_in = a.x_out = nullptr;
  for (int32_t* bad : {&row[0], &place[0], &index[0], &words[0], &words[1], &words[2], &words[3],
                       &words[4], &words[5]}) {
    for (const int32_t value :
         {-2, 1 << 30, std::numeric_limits<int32_t>::min(), std::numeric_limits<int32_t>::max()}) {
      const int32_t good = *bad;
      std::vector<float> kept(room);
      *bad = value;
      status.assign(B, 0);
      const int sample = bad == &place[0] ? 1 : 0;  // where sample 0 stands
      expect(fs_step(&a) == FS_OK && (status[0] & 7) != 0, "fs_step: a bad index was followed");
      for (int e = 0; e < D; ++e)
        expect(bad == &place[0] || room[static_cast<size_t>((1 - sample) * D + e)] ==
                                       kept[static_cast<size_t>((1 - sample) * D + e)],
               "a sample with a bad index was written");
      *bad = good;
    }
  }
}

void spoil_noise() {
  std::vector<double> out(2 * 5);
  std::vector<uint64_t> seed(2);
  fs_noise_args a = sized<fs_noise_args>();
  std::vector<uint32_t> stage(2);
  a.batch = 2, a.elements = 5, a.out = out.data(), a.seed = seed.data(), a.stage = stage.data();
  spoil_each("fs_noise_fill", fs_noise_fill, a,
             {SPOIL_HEAD, SPOIL(dtype, FS_F16), SPOIL(dtype, -1), SPOIL_SIZE(batch),
              SPOIL_SIZE(elements), SPOIL(threads, -1), SPOIL(reserved, 1), SPOIL(out, nullptr),
              SPOIL_POINTER(out), SPOIL_POINTER(seed), SPOIL_POINTER(stage)});
}

void spoil_moments() {
  std::vector<float> data(2 * 5, 1.0f);
  std::vector<double> dots(2 * 2), most(2);
  fs_moments_args a = sized<fs_moments_args>();
  a.P = 1, a.Q = 2, a.batch = 2, a.elements = 5, a.a[0] = a.b[0] = a.b[1] = data.data(),
  a.dots = dots.data(), a.max_abs = most.data();
  spoil_each("fs_moments", fs_moments, a,
             {SPOIL_HEAD, SPOIL(dtype, 4), SPOIL(P, 0), SPOIL_COUNT(P, FS_MAX_MOMENTS_A),
              SPOIL_COUNT(Q, FS_MAX_MOMENTS_B), SPOIL_SIZE(batch), SPOIL_SIZE(elements),
              SPOIL(threads, -1), SPOIL(a[0], nullptr), SPOIL(b[1], nullptr), SPOIL_POINTER(a[0]),
              SPOIL_POINTER(b[1]), SPOIL_POINTER(dots), SPOIL_POINTER(max_abs),
              SPOIL(workspace_bytes, -1)});
  int64_t bytes = -1;
  expect(fs_moments_workspace(&a, &bytes) == FS_OK && bytes == 0, "fs_moments_workspace");
  expect_refused(fs_moments_workspace(&a, nullptr), "fs_moments_workspace into NULL");
  a.P = 0;
  expect_refused(fs_moments_workspace(&a, &bytes), "fs_moments_workspace: P = 0");
}

void spoil_cost() {
  std::vector<float> data(2 * 3 * 5, 1.0f), gathered(2 * 3 * 5);
  std::vector<double> c(2 * 3 * 3, 0.5), out(2 * 3 * 3);
  std::vector<int32_t> band{1, 3, 2, 3, -9, 99}, star{-1, 0, 2}, beyond{-1, 0, 3};
  fs_cost_args a = sized<fs_cost_args>();
  a.terms = 2, a.batch = 2, a.I = a.J = 3, a.D = 5, a.p = 2, a.U[0] = a.U[1] = a.X = data.data(),
  a.c = c.data(), a.band = band.data(), a.out = out.data();
  const double nan = std::numeric_limits<double>::quiet_NaN(),
               inf = std::numeric_limits<double>::infinity();
  spoil_each(
      "fs_cost_matrix", fs_cost_matrix, a,
      {SPOIL_HEAD,         SPOIL(dtype, 4),     SPOIL(terms, 0),      SPOIL(terms, 5),
       SPOIL_SIZE(batch),  SPOIL_SIZE(I),       SPOIL_SIZE(J),        SPOIL_SIZE(D),
       SPOIL(threads, -1), SPOIL(reserved, 1),  SPOIL(p, 0.0),        SPOIL(p, -1.0),
       SPOIL(p, nan),      SPOIL(p, inf),       SPOIL(U[1], nullptr), SPOIL(X, nullptr),
       SPOIL(c, nullptr),  SPOIL(out, nullptr), SPOIL_POINTER(U[0]),  SPOIL_POINTER(X),
       SPOIL_POINTER(c),   SPOIL_POINTER(band), SPOIL_POINTER(out),   SPOIL(workspace_bytes, -1)});
  int64_t bytes = -1;
  expect(fs_cost_workspace(&a, &bytes) == FS_OK && bytes == 0, "fs_cost_workspace");
  expect_refused(fs_cost_workspace(&a, nullptr), "fs_cost_workspace into NULL");
  a.i_star = star.data(), a.out = gathered.data();
  spoil_each("fs_cost_gather", fs_cost_gather, a,
             {SPOIL_HEAD, SPOIL_SIZE(batch), SPOIL(i_star, nullptr), SPOIL_POINTER(i_star),
              SPOIL(i_star_batch_stride, 1), SPOIL(out, nullptr), SPOIL_POINTER(out),
              SPOIL(i_star, beyond.data())});
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return std::fprintf(stderr, "usage: hostile <plan.fsplan>\n"), 2;
  spoil_plans(argv[1]);
  spoil_step();
  spoil_noise();
  spoil_moments();
  spoil_cost();
  std::printf("%d checks\n", checks);
  return 0;
}
