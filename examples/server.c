/* Step-level continuous batching from a plan file: requests join and leave between any two model
 * evaluations.
 *
 *   server <plan.fsplan> <requests> <places> <elements> <states.bin>
 *
 * Every request has a seed, a place in the pools of state and history, and a row of the plan. One
 * tick is one model call for all requests in flight and one fs_step that takes each of them from
 * its own row to its next. Newcomers take row 0, which calls no model, in the same fs_step. A
 * request ends with the same bits as if it had run alone.
 *
 * Build, after `cmake --install build/c --prefix <dir>`:
 *   cc -std=c99 examples/server.c -I<dir>/include -L<dir>/lib -lfastsample -Wl,-rpath,<dir>/lib -o
 * server
 */
#include <fastsample/fastsample.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct request {
  int number, place, row, arrived;
} request;

typedef struct server {
  fs_plan* plan;
  fs_info info;
  fs_step_args step;
  int places, free_places;
  int* free_place;
  request* running; /* in the order of the last step's model_input */
  int count;
  /* What the next fs_step is told about each sample of its batch. */
  int32_t *row, *place, *f_index, *status;
  uint64_t* seed;
  float *input, *f, *scale, *t;
} server;

static void check(int status) {
  if (status == FS_OK) return;
  fprintf(stderr, "server: %s\n", fs_last_error());
  exit(1);
}

static void* room(size_t count, size_t size) {
  void* memory = calloc(count ? count : 1, size);
  if (!memory) exit(fprintf(stderr, "server: out of memory\n"));
  return memory;
}

/* Stand-in for a network: a batch of inputs and its times in, one output (for every branch) out. */
static void model(const float* input, const float* t, float* f, int batch, int64_t elements) {
  int64_t i;
  (void)t;
  for (i = 0; i < batch * elements; ++i) f[i] = 0.3f * input[i] - 0.1f;
}

static void load_plan(server* s, const char* path) {
  fs_dims dims;
  fs_row_info first;
  int64_t floats, ints;
  check(fs_plan_load(path, &s->plan));
  first.struct_size = sizeof first;
  check(fs_plan_row(s->plan, 0, &first));
  if (first.sigma == 0) /* x = x0: the plan was made with start=, for an image, and a request here
                           begins as noise */
    exit(
        (fprintf(stderr,
                 "server: %s starts from an image; a plan made without start= is accepted\n", path),
         1));
  s->info.struct_size = sizeof s->info;
  check(fs_plan_info(s->plan, &s->info));
  memset(&dims, 0, sizeof dims);
  dims.struct_size = sizeof dims;
  dims.S = s->info.S, dims.G = s->info.G, dims.L = s->info.L, dims.K = s->info.K,
  dims.E = s->info.E;
  check(fs_table_size(&dims, &floats, &ints));
  floats *= s->info.rows, ints *= s->info.rows;
  s->step.table_f = room((size_t)floats, sizeof(float));
  s->step.table_i = room((size_t)ints, sizeof(int32_t));
  check(fs_plan_pack(s->plan, &dims, FS_F32, (void*)s->step.table_f, floats,
                     (int32_t*)s->step.table_i, ints));
  s->step.S = dims.S, s->step.G = dims.G, s->step.L = dims.L, s->step.K = dims.K,
  s->step.E = dims.E;
  s->step.table_rows = s->info.rows;
}

/* All memory is taken here; ticks allocate nothing. */
static void open_server(server* s, const char* path, int places, int64_t elements) {
  size_t P = (size_t)places, D = (size_t)elements;
  int k;
  memset(s, 0, sizeof *s);
  s->step.struct_size = sizeof s->step;
  load_plan(s, path);
  s->places = s->free_places = places;
  s->free_place = room(P, sizeof(int));
  for (k = 0; k < places; ++k) s->free_place[k] = k;
  s->running = room(P, sizeof(request));
  s->row = room(P, sizeof(int32_t)), s->place = room(P, sizeof(int32_t)),
  s->status = room(P, sizeof(int32_t));
  s->f_index = room(P * (size_t)s->info.G, sizeof(int32_t)), s->seed = room(P, sizeof(uint64_t));
  s->input = room(P * D, sizeof(float)), s->f = room(P * D, sizeof(float));
  s->scale = room(P * (size_t)s->info.K, sizeof(float)),
  s->t = room(P * (size_t)s->info.E, sizeof(float));
  s->step.device = FS_CPU, s->step.state_dtype = FS_F32, s->step.model_dtype = FS_F32;
  s->step.elements = elements, s->step.pool = places, s->step.groups = 1, s->step.copies = 1;
  s->step.x = room(P * D, sizeof(float)),
  s->step.slots = room((size_t)s->info.S * P * D, sizeof(float));
  s->step.model_input = s->input, s->step.t_out = s->t, s->step.scale = s->scale;
  s->step.row = s->row, s->step.place = s->place, s->step.f_index = s->f_index,
  s->step.seed = s->seed, s->step.status = s->status;
  for (k = 0; k < s->info.G; ++k)
    s->step.f[k] = s->f; /* the stand-in gives every branch the same output */
}

/* A new request: a free place, unit noise of its seed there, row 0 next. */
static request admit(server* s, int number, int tick) {
  request r;
  uint64_t seed = (uint64_t)number;
  fs_noise_args noise;
  r.number = number, r.row = 0, r.arrived = tick;
  r.place = s->free_place[--s->free_places];
  memset(&noise, 0, sizeof noise);
  noise.struct_size = sizeof noise;
  noise.dtype = FS_F32, noise.batch = 1, noise.elements = s->step.elements, noise.seed = &seed;
  noise.out = (float*)s->step.x + r.place * s->step.elements;
  check(fs_noise_fill(&noise));
  return r;
}

static void put(server* s, request* batch, int b, request r, int output) {
  batch[b] = r;
  s->row[b] = r.row, s->place[b] = r.place, s->seed[b] = (uint64_t)r.number, s->status[b] = 0;
  s->f_index[b] = output;
}

/* One model call and one step for everybody. Requests on their last row go to the batch's end: the
 * next call's inputs are then the first ones, already in order. Returns how many have finished;
 * they stand behind the others in s->running. */
static int tick(server* s, const request* fresh, int newcomers, request* batch) {
  const int last = s->info.rows - 2, before = s->count;
  int b = 0, k, g, ending = 0;
  if (before > 0) model(s->input, s->t, s->f, before, s->step.elements);
  for (k = 0; k < before; ++k) {
    if (s->running[k].row < last) put(s, batch, b++, s->running[k], k);
  }
  for (k = 0; k < newcomers; ++k)
    put(s, batch, b++, fresh[k], -1); /* row 0 reads no model output */
  for (k = 0; k < before; ++k) {
    if (s->running[k].row == last) put(s, batch, b++, s->running[k], k), ++ending;
  }
  for (g = 1; g < s->info.G; ++g)
    memcpy(s->f_index + g * b, s->f_index, (size_t)b * sizeof(int32_t));
  for (k = 0; k < b * s->info.K; ++k) s->scale[k] = 2.0f;
  s->step.batch = b, s->step.outputs = before;
  check(fs_step(&s->step));
  for (k = 0; k < b; ++k) {
    if (s->status[k])
      exit(fprintf(stderr, "server: request %d: status %d at row %d\n", batch[k].number,
                   (int)(s->status[k] & 0xFF), (int)(s->status[k] >> 8)));
    ++batch[k].row;
  }
  memcpy(s->running, batch, (size_t)b * sizeof(request));
  s->count = b - ending;
  return ending;
}

int main(int argc, char** argv) {
  server s;
  request *fresh, *batch;
  int requests, next = 0, done = 0, now, k;
  FILE* out;
  if (argc != 6)
    return fprintf(stderr,
                   "usage: server <plan.fsplan> <requests> <places> <elements> <states.bin>\n"),
           2;
  requests = atoi(argv[2]);
  if (requests < 1 || atoi(argv[3]) < 1 || atoll(argv[4]) < 1)
    return fprintf(stderr, "server: requests, places and elements must be at least 1\n"), 2;
  open_server(&s, argv[1], atoi(argv[3]), atoll(argv[4]));
  fresh = room((size_t)s.places, sizeof *fresh), batch = room((size_t)s.places, sizeof *batch);
  out = fopen(argv[5], "wb");
  if (!out) return fprintf(stderr, "server: cannot write %s\n", argv[5]), 1;
  for (now = 0; done < requests; ++now) {
    int newcomers = 0, ended;
    /* One arrival a tick while there is a place: every request stands at a row of its own. */
    if (next < requests && s.free_places > 0) fresh[newcomers++] = admit(&s, next++, now);
    ended = tick(&s, fresh, newcomers, batch);
    for (k = s.count; k < s.count + ended; ++k, ++done) {
      const request r = s.running[k];
      const float* x = (const float*)s.step.x + r.place * s.step.elements;
      const int32_t number = r.number;
      printf("request %d: arrived at tick %d, done at tick %d, %d evaluations, x[0] = %.9g\n",
             r.number, r.arrived, now, s.info.nfe, (double)x[0]);
      fwrite(&number, sizeof number, 1, out);
      fwrite(x, sizeof *x, (size_t)s.step.elements, out);
      s.free_place[s.free_places++] = r.place;
    }
  }
  if (fclose(out) != 0) return fprintf(stderr, "server: cannot write %s\n", argv[5]), 1;
  check(fs_plan_free(s.plan));
  return 0;
}
