/* Runs a saved plan from row 0 to its end, with an elementwise model, and writes the float32 state
 * after every row.
 *
 *   plan_run <plan.fsplan> <states.bin> <batch> <elements> <first seed>
 *
 * Branch g of the model gives f_g = a x - b with a = 0.3 + 0.1 g and b = 0.1, each operation
 * rounded to float32 (compile with -ffp-contract=off). Sample b has seed <first seed> + b; guidance
 * scales are 2, 3, ...
 */
#include <fastsample/fastsample.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void check(int status, const char* what) {
  if (status == FS_OK) return;
  fprintf(stderr, "plan_run: %s: status %d: %s\n", what, status, fs_last_error());
  exit(1);
}

static void* room(size_t count, size_t size) {
  void* memory = calloc(count ? count : 1, size);
  if (!memory) {
    fprintf(stderr, "plan_run: out of memory\n");
    exit(1);
  }
  return memory;
}

static void model(const float* x, float* f, int64_t n, int branch) {
  const float a = 0.3f + 0.1f * (float)branch, b = 0.1f;
  int64_t i;
  for (i = 0; i < n; ++i) f[i] = a * x[i] - b;
}

/* The plan's rows as a float32 table, in args. */
static void load_table(const char* path, fs_plan** plan, fs_info* info, fs_step_args* args) {
  fs_dims dims;
  int64_t floats, ints;
  float* table_f;
  int32_t* table_i;
  check(fs_plan_load(path, plan), path);
  memset(info, 0, sizeof *info);
  info->struct_size = sizeof *info;
  check(fs_plan_info(*plan, info), "info");
  memset(&dims, 0, sizeof dims);
  dims.struct_size = sizeof dims;
  dims.S = info->S, dims.G = info->G, dims.L = info->L, dims.K = info->K, dims.E = info->E;
  check(fs_table_size(&dims, &floats, &ints), "table size");
  table_f = room((size_t)(info->rows * floats), sizeof *table_f);
  table_i = room((size_t)(info->rows * ints), sizeof *table_i);
  check(
      fs_plan_pack(*plan, &dims, FS_F32, table_f, info->rows * floats, table_i, info->rows * ints),
      "pack");
  memset(args, 0, sizeof *args);
  args->struct_size = sizeof *args;
  args->device = FS_CPU, args->state_dtype = FS_F32, args->model_dtype = FS_F32;
  args->S = info->S, args->G = info->G, args->L = info->L, args->K = info->K, args->E = info->E;
  args->groups = 1, args->copies = 1;
  args->table_rows = info->rows, args->table_f = table_f, args->table_i = table_i;
}

int main(int argc, char** argv) {
  fs_plan* plan;
  fs_info info;
  fs_step_args args;
  fs_noise_args noise;
  FILE* out;
  int64_t batch, elements, b;
  size_t n;
  int32_t *status, i, g;
  float *x, *input, *scale, *f[FS_MAX_BRANCHES];
  uint64_t* seed;
  if (argc != 6)
    return fprintf(stderr,
                   "usage: plan_run <plan.fsplan> <states.bin> <batch> <elements> <first seed>\n"),
           2;
  batch = strtoll(argv[3], NULL, 10), elements = strtoll(argv[4], NULL, 10);
  load_table(argv[1], &plan, &info, &args);

  n = (size_t)(batch * elements);
  x = room(n, sizeof *x), input = room(n, sizeof *input);
  status = room((size_t)batch, sizeof *status);
  seed = room((size_t)batch, sizeof *seed);
  scale = room((size_t)(batch * info.K), sizeof *scale);
  for (b = 0; b < batch; ++b) seed[b] = strtoull(argv[5], NULL, 10) + (uint64_t)b;
  for (b = 0; b < batch * info.K; ++b) scale[b] = 2.0f + (float)(b % info.K);
  args.batch = args.pool = args.outputs = batch, args.elements = elements;
  args.x = x, args.slots = room(n * (size_t)info.S, sizeof *x), args.model_input = input;
  args.one_row = 1, args.status = status, args.seed = seed, args.scale = scale;
  for (g = 0; g < info.G; ++g) args.f[g] = f[g] = room(n, sizeof *x);

  memset(&noise, 0, sizeof noise);
  noise.struct_size = sizeof noise;
  noise.dtype = FS_F32, noise.batch = batch, noise.elements = elements, noise.seed = seed,
  noise.out = x;
  check(fs_noise_fill(&noise), "noise");

  out = fopen(argv[2], "wb");
  for (i = 0; out && i < info.rows; ++i) {
    fs_row_info now;
    memset(&now, 0, sizeof now);
    now.struct_size = sizeof now;
    check(fs_plan_row(plan, i, &now), "row");
    for (g = 0; now.call >= 0 && g < info.G; ++g) model(input, f[g], (int64_t)n, g);
    args.row_number = i;
    check(fs_step(&args), "step");
    for (b = 0; b < batch; ++b) {
      if (status[b])
        return fprintf(stderr, "plan_run: row %d: sample %d has status %d\n", (int)i, (int)b,
                       (int)(status[b] & 0xFF)),
               1;
    }
    if (fwrite(x, sizeof *x, n, out) != n)
      return fprintf(stderr, "plan_run: cannot write %s\n", argv[2]), 1;
  }
  if (!out || fclose(out) != 0) return fprintf(stderr, "plan_run: cannot write %s\n", argv[2]), 1;
  check(fs_plan_free(plan), "free");
  return 0;
}
