/* Step-level continuous batching from a plan file: requests join and leave between any two model
 * evaluations.
 *
 *   server [--device cuda] <plan.fsplan> <requests> <places> <elements> <states.bin>
 *
 * Every request has a seed, a place in the pools of state and history, and a row of the plan. One
 * tick is one model call for all requests in flight and one fs_step that takes each of them from
 * its own row to its next. Newcomers take row 0, which calls no model, in the same fs_step. A
 * request ends with the same bits as if it had run alone.
 *
 * Build, after `cmake --install build/c --prefix <dir>`:
 *   cc -std=c99 examples/server.c -I<dir>/include -L<dir>/lib -lfastsample -Wl,-rpath,<dir>/lib -o
 * server
 * and for --device cuda, of a library that was built with CUDA:
 *   nvcc -DSERVER_CUDA examples/server.c -I<dir>/include -L<dir>/lib -lfastsample -o server
 */
#include <fastsample/fastsample.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef SERVER_CUDA
#include <cuda_runtime_api.h>
#endif

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
  /* What the next fs_step is told about each sample of its batch, and what it tells. On a GPU these
   * are the host's copies of what s->step points to; the stand-in model runs on the host. */
  int32_t *row, *place, *f_index, *status;
  uint64_t* seed;
  float *input, *f, *scale, *t, *x;
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

#ifdef SERVER_CUDA
static void cuda(cudaError_t error) {
  if (error == cudaSuccess) return;
  fprintf(stderr, "server: %s\n", cudaGetErrorString(error));
  exit(1);
}
#endif

/* The device's memory for what the host has at `host`: that itself on the CPU. */
static void* there(const server* s, void* host, size_t bytes) {
#ifdef SERVER_CUDA
  void* memory;
  if (s->step.device == FS_CPU) return host;
  cuda(cudaMalloc(&memory, bytes ? bytes : 1));
  cuda(cudaMemcpy(memory, host, bytes, cudaMemcpyDefault));
  return memory;
#else
  (void)s, (void)bytes;
  return host;
#endif
}

/* From the host to the device or back, in the stream's order. */
static void copy(void* to, const void* from, size_t bytes) {
  if (to == from) return;
#ifdef SERVER_CUDA
  cuda(cudaMemcpy(to, from, bytes, cudaMemcpyDefault));
#else
  memcpy(to, from, bytes);
#endif
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
  float* table_f;
  int32_t* table_i;
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
  table_f = room((size_t)floats, sizeof(float)), table_i = room((size_t)ints, sizeof(int32_t));
  check(fs_plan_pack(s->plan, &dims, FS_F32, table_f, floats, table_i, ints));
  s->step.table_f = there(s, table_f, (size_t)floats * sizeof(float));
  s->step.table_i = there(s, table_i, (size_t)ints * sizeof(int32_t));
  s->step.S = dims.S, s->step.G = dims.G, s->step.L = dims.L, s->step.K = dims.K,
  s->step.E = dims.E;
  s->step.table_rows = s->info.rows;
}

/* All memory is taken here; ticks allocate nothing. */
static void open_server(server* s, const char* path, int device, int places, int64_t elements) {
  size_t P = (size_t)places, D = (size_t)elements, S, G, K, E;
  int k;
  memset(s, 0, sizeof *s);
  s->step.struct_size = sizeof s->step, s->step.device = device;
  load_plan(s, path);
  S = (size_t)s->info.S, G = (size_t)s->info.G, K = (size_t)s->info.K, E = (size_t)s->info.E;
  s->places = s->free_places = places;
  s->free_place = room(P, sizeof(int));
  for (k = 0; k < places; ++k) s->free_place[k] = k;
  s->running = room(P, sizeof(request));
  s->row = room(P, 4), s->place = room(P, 4), s->status = room(P, 4), s->f_index = room(P * G, 4);
  s->seed = room(P, 8), s->scale = room(P * K, 4), s->t = room(P * E, 4);
  s->input = room(P * D, 4), s->f = room(P * D, 4), s->x = room(P * D, 4);
  s->step.state_dtype = FS_F32, s->step.model_dtype = FS_F32;
  s->step.elements = elements, s->step.pool = places, s->step.groups = 1, s->step.copies = 1;
  s->step.x = there(s, s->x, P * D * 4);
  s->step.slots = there(s, room(S * P * D, 4), S * P * D * 4);
  s->step.model_input = there(s, s->input, P * D * 4), s->step.t_out = there(s, s->t, P * E * 4);
  s->step.scale = there(s, s->scale, P * K * 4), s->step.row = there(s, s->row, P * 4);
  s->step.place = there(s, s->place, P * 4), s->step.f_index = there(s, s->f_index, P * G * 4);
  s->step.seed = there(s, s->seed, P * 8), s->step.status = there(s, s->status, P * 4);
  s->step.f[0] = there(s, s->f, P * D * 4);
  for (k = 1; k < s->info.G; ++k)
    s->step.f[k] = s->step.f[0]; /* the stand-in gives every branch the same output */
}

/* A new request: a free place, unit noise of its seed there, row 0 next. */
static request admit(server* s, int number, int tick) {
  request r;
  fs_noise_args noise;
  r.number = number, r.row = 0, r.arrived = tick;
  r.place = s->free_place[--s->free_places];
  memset(&noise, 0, sizeof noise);
  noise.struct_size = sizeof noise, noise.device = s->step.device;
  noise.dtype = FS_F32, noise.batch = 1, noise.elements = s->step.elements;
  s->seed[0] = (uint64_t)number; /* before the next step's seeds are put there */
  copy((void*)s->step.seed, s->seed, sizeof *s->seed);
  noise.seed = s->step.seed;
  noise.out = (float*)s->step.x + r.place * s->step.elements;
  check(fs_noise_fill(&noise));
  return r;
}

static void put(server* s, request* batch, int b, request r, int output) {
  batch[b] = r;
  s->row[b] = r.row, s->place[b] = r.place, s->seed[b] = (uint64_t)r.number, s->status[b] = 0;
  s->f_index[b] = output;
}

/* The step of a batch: what it is told goes to the device, what it tells comes back. */
static void step(server* s, int batch, int outputs) {
  const size_t B = (size_t)batch, D = (size_t)s->step.elements * 4;
  s->step.batch = batch, s->step.outputs = outputs;
  copy((void*)s->step.row, s->row, B * 4), copy((void*)s->step.place, s->place, B * 4);
  copy((void*)s->step.f_index, s->f_index, B * 4 * (size_t)s->info.G);
  copy((void*)s->step.seed, s->seed, B * 8), copy(s->step.status, s->status, B * 4);
  copy((void*)s->step.scale, s->scale, B * 4 * (size_t)s->info.K);
  copy((void*)s->step.f[0], s->f, (size_t)outputs * D);
  check(fs_step(&s->step));
  copy(s->status, s->step.status, B * 4), copy(s->input, s->step.model_input, B * D);
  copy(s->t, s->step.t_out, B * 4 * (size_t)s->info.E);
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
  step(s, b, before);
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
  int requests, next = 0, done = 0, now, k, device = FS_CPU;
  FILE* out;
  if (argc == 8 && !strcmp(argv[1], "--device") && !strcmp(argv[2], "cuda")) {
#ifndef SERVER_CUDA
    return fprintf(stderr, "server: built without CUDA; see the top of server.c\n"), 2;
#endif
    device = FS_CUDA, argc -= 2, argv += 2;
  }
  if (argc != 6)
    return fprintf(stderr,
                   "usage: server [--device cuda] <plan.fsplan> <requests> <places> <elements> "
                   "<states.bin>\n"),
           2;
  requests = atoi(argv[2]);
  if (requests < 1 || atoi(argv[3]) < 1 || atoll(argv[4]) < 1)
    return fprintf(stderr, "server: requests, places and elements must be at least 1\n"), 2;
  open_server(&s, argv[1], device, atoi(argv[3]), atoll(argv[4]));
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
      float* x = s.x + r.place * s.step.elements;
      const int32_t number = r.number;
      copy(x, (const float*)s.step.x + r.place * s.step.elements,
           (size_t)s.step.elements * sizeof *x);
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
