/* A caller compiled against version 1 of the interface: its structs are copies of that version's,
 * and what stands behind them in memory is not theirs to be read.
 */
#include <fastsample/fastsample.h>
#include <stdio.h>
#include <string.h>

typedef struct step_args_1 {
  uint32_t struct_size;
  int32_t device, state_dtype, model_dtype;
  int64_t batch, elements, pool, outputs, groups, inner;
  int32_t S, G, L, K, E, copies;
  int64_t table_rows;
  const void* table_f;
  const int32_t* table_i;
  void *x, *slots;
  const void* f[8];
  void* model_input;
  const int32_t *row, *place, *f_index;
  const void* scale;
  const uint64_t* seed;
  const void *noise_scale, *weights, *bound;
  const void* noise[8];
  const void* mask;
  int64_t mask_batch_stride;
  const void* known;
  int64_t known_batch_stride;
  float* t_out;
  void* preview;
  int32_t *status, threads, reserved;
  void* stream;
} step_args_1;

typedef struct noise_args_1 {
  uint32_t struct_size;
  int32_t device, dtype;
  uint32_t id;
  int64_t batch, elements;
  const uint64_t* seed;
  void* out;
  int32_t threads, reserved;
  void* stream;
} noise_args_1;

/* Where the struct of version 1 ends, a later library finds bytes that it would refuse. */
typedef struct caller {
  step_args_1 step;
  unsigned char behind_step[256];
  noise_args_1 noise;
  unsigned char behind_noise[256];
} caller;

int main(void) {
  enum { B = 2, D = 3 };
  caller c;
  float table[18] = {2}; /* S = G = L = K = E = 0: x' = 2 x */
  int32_t words[7] = {1, 0, 0, 0, -1, -1, -1}, row[B] = {0, 0}, status[B] = {0, 0};
  float x[B * D], noise[B * D];
  int i;
  memset(&c, 0, sizeof c);
  memset(c.behind_step, 0xFF, sizeof c.behind_step);
  memset(c.behind_noise, 0xFF, sizeof c.behind_noise);
  if (sizeof c.step != 400 || sizeof c.noise != 64) return printf("sizes\n"), 1;
  c.noise.struct_size = 64, c.noise.batch = B, c.noise.elements = D, c.noise.out = x;
  if (fs_noise_fill((const fs_noise_args*)&c.noise) != FS_OK)
    return printf("noise: %s\n", fs_last_error()), 1;
  memcpy(noise, x, sizeof x);
  c.step.struct_size = 400, c.step.batch = c.step.pool = B, c.step.elements = D;
  c.step.groups = c.step.copies = 1, c.step.table_rows = 1;
  c.step.table_f = table, c.step.table_i = words, c.step.x = x, c.step.row = row;
  c.step.status = status;
  if (fs_step((const fs_step_args*)&c.step) != FS_OK)
    return printf("step: %s\n", fs_last_error()), 1;
  for (i = 0; i < B * D; ++i) {
    if (x[i] != 2 * noise[i] || x[i] == 0 || status[i / D] != 0) return printf("x[%d]\n", i), 1;
  }
  return printf("as in version 1\n"), 0;
}
