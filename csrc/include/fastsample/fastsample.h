/* fastsample: few-step sampling for diffusion and flow models, as a compiled plan. The C interface
 * (C99).
 *
 * A plan is a table of rows. One row makes one solver step from a model's output:
 *     f = sum_g w_g f_g,  m = clip(w_0 p x + q f),  [x' u v] = M [x r_1..r_S m f f_1..f_G n_1..n_L]
 * Load a plan, pack it into a table of the state's dtype, then call fs_step once per model
 * evaluation. Every function returns FS_OK (0) or a negative status, and never aborts, exits or
 * throws; the sentence of the last error of this thread is in fs_last_error(). Nothing here
 * allocates in fs_step. Sizes are in elements.
 *
 * A struct's first field is its size as the caller was compiled. Structs grow at the end only, and
 * every size from version 1 up to this library's own is accepted: the fields that a caller does not
 * have are 0. New fields therefore mean, at 0, what was so before them.
 */
#ifndef FASTSAMPLE_FASTSAMPLE_H
#define FASTSAMPLE_FASTSAMPLE_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define FS_API __attribute__((visibility("default")))
#else
#define FS_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define FS_ABI_VERSION 1
#define FS_MAX_ROWS 65536
#define FS_MAX_SLOTS 24
#define FS_MAX_BRANCHES 8
#define FS_MAX_NOISES 8
#define FS_MAX_SCALES 8
#define FS_MAX_SCALARS 4
#define FS_MAX_MOMENTS_A 5
#define FS_MAX_MOMENTS_B 24
#define FS_MAX_TERMS 4

enum fs_status {
  FS_OK = 0,
  FS_E_ARG = -1,         /* an argument is wrong: NULL, out of range, misaligned, not finite */
  FS_E_FILE = -2,        /* the file cannot be read */
  FS_E_FORMAT = -3,      /* the bytes are not a sound plan */
  FS_E_MEMORY = -4,      /* out of memory; nothing was changed */
  FS_E_UNSUPPORTED = -5, /* not in this build, or not representable in the dtype asked for */
  FS_E_HANDLE = -6,      /* not a live plan: NULL, freed, or not from this library */
  FS_E_INTERNAL = -7,    /* a defect of this library */
  FS_E_DEVICE = -8       /* CUDA refused, or had an error pending: its words are in the sentence */
};

enum fs_dtype { FS_F32 = 0, FS_F64 = 1, FS_F16 = 2, FS_BF16 = 3 };
enum fs_device { FS_CPU = 0, FS_CUDA = 1 };

/* A sample's status word: the low byte holds these bits, bits 8..31 the low 24 bits of the table
 * row it was written for (of the first group with the fault; of group 0 for FS_BAD_PLACE alone).
 * fs_step writes the word where its low byte is 0 and leaves it alone where it is not, so that the
 * first fault of a run is still there at its end: clear it yourself. */
enum fs_sample_status {
  FS_BAD_ROW = 1,    /* row outside the table, or a table row with numbers out of range: sample left
                        untouched */
  FS_BAD_PLACE = 2,  /* place outside the pool: sample left untouched */
  FS_BAD_BRANCH = 4, /* f_index outside the model's output, or -1 where the row reads that branch:
                        left untouched */
  FS_NOT_FINITE = 8  /* x' holds an infinity or a NaN (it is written all the same) */
};

/* Version of this interface: compare with FS_ABI_VERSION. */
FS_API int fs_abi_version(void);

/* Release of the library, such as "0.1.0". */
FS_API const char* fs_version(void);

/* Sentence of this thread's last failing call, "" if none. Valid until the thread's next failing
 * call. */
FS_API const char* fs_last_error(void);

/* What was built and what runs, as JSON: compiler, flags, isa (chosen at run time), openmp,
 * threads, cuda. */
FS_API const char* fs_build_info(void);

/* ---- Plans ----------------------------------------------------------------------------------- */

/* A read-only plan. Safe to use from any number of threads at once; free it after the last use. Its
 * last row holds (x' = x, no slot is written), so that a finished sample may stay there. */
typedef struct fs_plan fs_plan;

/* Sizes a row's record depends on: S slots, G branches, L noises, K scales, E model scalars. */
typedef struct fs_dims {
  uint32_t struct_size; /* sizeof(fs_dims) */
  int32_t S, G, L, K, E;
} fs_dims;

typedef struct fs_info {
  uint32_t struct_size; /* sizeof(fs_info), set by the caller */
  int32_t rows, S, G, L, K, E;
  int32_t operands;   /* W = 3 + S + G + L columns: x r_1..r_S m f f_1..f_G n_1..n_L */
  int32_t nfe;        /* rows that call a model */
  int64_t note_bytes; /* length of the JSON note */
  uint8_t sha256[32]; /* the plan's identity */
} fs_info;

/* What a host needs to know of row i: which model to call before it, when, and what the row
 * touches. */
typedef struct fs_row_info {
  uint32_t struct_size; /* sizeof(fs_row_info), set by the caller */
  int32_t call;         /* model number, -1 = no call */
  int32_t entry; /* 1: a run may start here (no slot is read, now or later, before it is written) */
  int32_t du, dv;              /* slots written, -1 = none */
  uint32_t branches;           /* bit g: f_g enters f */
  uint32_t known_reads;        /* bit 0: y, bit 1+l: n_l; 0 = this row does not blend */
  uint64_t reads;              /* bit k: operand column k is read */
  int64_t ids[FS_MAX_NOISES];  /* noise ids, -1 = none */
  double p, q, clip;           /* clip 0 = no clip */
  double c, t[FS_MAX_SCALARS]; /* input scale and model scalars of the NEXT row's call */
  double dx, dm;               /* preview of x0 = dx x + dm m */
  double alpha, sigma;         /* x = alpha x0 + sigma eps as the row begins */
} fs_row_info;

/* Reads and checks a plan file. *plan is NULL on failure.
 * FS_E_FILE (cannot be read), FS_E_FORMAT (cut, changed or inconsistent), FS_E_MEMORY. */
FS_API int fs_plan_load(const char* path, fs_plan** plan);

/* The same from memory; the bytes are copied. data may be NULL only with size 0. */
FS_API int fs_plan_parse(const void* data, size_t size, fs_plan** plan);

/* Frees a plan. NULL is allowed and does nothing; a plan freed twice answers FS_E_HANDLE where that
 * can be seen. */
FS_API int fs_plan_free(fs_plan* plan);

/* Sizes of a plan. Set info->struct_size first. */
FS_API int fs_plan_info(const fs_plan* plan, fs_info* info);

/* Row i, 0 <= i < rows. Set row->struct_size first. */
FS_API int fs_plan_row(const fs_plan* plan, int64_t i, fs_row_info* row);

/* *scale = what row 0 multiplies unit noise by: sigma of the first point, times the amplitude that
 * a search found. A host that starts a run itself, at row 1, hands in scale times its noise (and
 * the churn of a first step, where row 0 draws noise too). FS_E_ARG: scale is NULL, or the plan
 * begins from an image (sigma of row 0 is 0) and has none. */
FS_API int fs_plan_init_scale(const fs_plan* plan, double* scale);

/* The plan's JSON note, NUL-terminated, owned by the plan; NULL (and an error) if the handle is
 * bad. */
FS_API const char* fs_plan_note(const fs_plan* plan);

/* Numbers in one packed row: *floats = 3W+3+G+GK+(1+L)+1+E+2+2 with W = 3+S+G+L, *ints = 7+L. The
 * floats are M[3][W] | p q clip | U[G] | V[G][K] | ky Cy[L] | c | t[E] | dx dm | alpha sigma. */
FS_API int fs_table_size(const fs_dims* dims, int64_t* floats, int64_t* ints);

/* Writes the plan's rows as the table fs_step reads: floats [rows, WF] of dtype (FS_F32 rounds
 * once, FS_F64), ints [rows, WI]. dims NULL = the plan's own sizes; larger ones pad, so that plans
 * of different solvers share one table: plans packed with the same dims one after the other are one
 * table, in which a plan's row i has the number of the rows before the plan, plus i. floats_size
 * and ints_size are the room in numbers, at least rows*WF and rows*WI. FS_E_ARG: dims below the
 * plan's, too little room; FS_E_UNSUPPORTED: a number beyond float32's range. */
FS_API int fs_plan_pack(const fs_plan* plan, const fs_dims* dims, int32_t dtype, void* floats,
                        int64_t floats_size, int32_t* ints, int64_t ints_size);

/* ---- One step -------------------------------------------------------------------------------- */

/* T = the state's dtype (FS_F32 | FS_F64), F = the model's (any). All arrays are contiguous,
 * aligned to their element, and distinct. Optional arrays may be NULL; the default stands in
 * brackets. */
typedef struct fs_step_args {
  uint32_t struct_size; /* sizeof(fs_step_args) */
  int32_t device;       /* FS_CPU; FS_CUDA answers FS_E_UNSUPPORTED in a build without CUDA, and has
                           all arrays in its memory, but for row_words */
  int32_t state_dtype;
  int32_t model_dtype;
  int64_t batch;    /* B samples in this call */
  int64_t elements; /* D numbers a sample */
  int64_t pool;     /* P places in x and slots */
  int64_t outputs;  /* rows in each f[g] */
  int64_t groups; /* >= 1; element e of a sample is in group (e / inner) % groups, each with its own
                     row; on FS_CUDA below 2^24 */
  int64_t inner;  /* >= 1, D a multiple of groups*inner; not read when groups == 1 */
  int32_t S, G, L, K, E;
  int32_t
      copies; /* model_input is written this often (branches batched along the first axis), >= 1 */
  int64_t table_rows;
  const void* table_f;            /* T [table_rows, WF], from fs_plan_pack */
  const int32_t* table_i;         /* [table_rows, WI] */
  void* x;                        /* T [P, D], the state, updated in place; see x_in, x_out */
  void* slots;                    /* T [S, P, D], history, updated in place; see slot_stride */
  const void* f[FS_MAX_BRANCHES]; /* F [outputs, D] each; NULL = the branch has no outputs */
  void* model_input;              /* F [copies, B, D] = c x' [not written] */
  const int32_t* row;             /* [B, groups], required unless one_row */
  const int32_t* place;           /* [B] place of each sample in the pools, all different [b] */
  const int32_t* f_index;         /* [G, B] row of f[g], -1 = branch absent [b] */
  const void* scale; /* T [B, K] guidance scales s_k of w_g = U_g + sum_k s_k V_gk [no V terms] */
  const uint64_t* seed;    /* [B] noise seeds [b] */
  const void* noise_scale; /* T [B], multiplies every noise [not multiplied] */
  const void* weights;     /* T [B, 1+G]: w_0, w_1..w_G from a guidance pre-pass [1, U + s V] */
  const void* bound;       /* T [B]: m = clamp(m, -bound, bound) / bound, in place of the row's clip
                              [row's clip] */
  const void* noise[FS_MAX_NOISES]; /* T [B, D]: n_l itself [from Philox: fs_noise_fill] */
  const void* mask; /* T [B, D] or [D]: x' += mask (t - x'), t = ky y + sum_l Cy_l n_l [no blend] */
  int64_t mask_batch_stride;  /* D, or 0: one mask for all */
  const void* known;          /* T [B, D] or [D]: y [no blend] */
  int64_t known_batch_stride; /* D, or 0 */
  void* t_out;      /* t_dtype [B, groups, E], the model scalars of the next call [not written] */
  void* preview;    /* T [B, D] = dx x + dm m of the state as the row began [not written] */
  int32_t* status;  /* [B], see fs_sample_status [not written] */
  int32_t threads;  /* at most this many; 0 = OpenMP's default. One below 65536 elements, and in a
                       forked child */
  int32_t reserved; /* 0 */
  void* stream;     /* CUDA stream; ignored on the CPU. Version 1 ends here */
  const void* x_in; /* T [P, D]: read in place of x, which is then only written [x] */
  void* x_out;      /* T [P, D]: written in place of x, which is then only read [x] */
  const uint32_t* stage;    /* [B] fourth counter word of Philox, for every noise drawn [0] */
  const int32_t* row_words; /* host copy of row row_number's ints [WI], for a device whose launch is
                               shaped by them; not read on the CPU [none] */
  int32_t one_row;          /* 1: every sample runs row row_number, and row is not read; 0: row */
  int32_t row_number;
  int32_t t_dtype;     /* of t_out: FS_F32, or state_dtype */
  int32_t reserved_2;  /* 0 */
  int64_t slot_stride; /* numbers from one slot to the next, at least P*D [P*D] */
  int64_t gpu;         /* FS_CUDA: 1 + the number of the device, which is made current for the call
                          [the current one] */
  int64_t channels; /* C: a sample's numbers, [C, D/C] in the order that noise counts them in, lie
                       as [D/C, C], as channels_last has them; D a multiple of C [they lie in the
                       order of noise, as with 1] */
} fs_step_args;

/* One row for every sample of a batch. Terms are added in the order written, products rounded
 * before sums, so the result has the same bits on every backend and instruction set in FS_F32. An
 * operand outside the row's read mask is never loaded; every operand is read before anything is
 * written. Indices are compared with their bounds per sample: a bad one sets the sample's status
 * and leaves the sample alone (x_out too). model_input of 16 bits is rounded to nearest even (from
 * float32: FS_F64 states are rounded to float32 first). batch 0 or elements 0 is allowed. FS_E_ARG:
 * a NULL, size, dtype or alignment that is wrong; FS_E_UNSUPPORTED: device; FS_E_DEVICE. On FS_CUDA
 * this and the functions below start their work on the stream and do not wait for it. */
FS_API int fs_step(const fs_step_args* args);

/* ---- Noise ----------------------------------------------------------------------------------- */

typedef struct fs_noise_args {
  uint32_t struct_size;  /* sizeof(fs_noise_args) */
  int32_t device, dtype; /* FS_F32 | FS_F64 (the float32 normal, widened) */
  uint32_t id;           /* noise id; 0 = the initial noise */
  int64_t batch, elements;
  const uint64_t* seed; /* [B] [b] */
  void* out;            /* [B, D] */
  int32_t threads, reserved;
  void* stream;          /* version 1 ends here */
  const uint32_t* stage; /* [B] [0] */
  int64_t gpu;           /* as in fs_step_args */
} fs_noise_args;

/* Unit normals to the bit: element e is lane e%4 of Philox4x32-10 block e/4; key = (seed low, seed
 * high), counter = (block low, block high, id, stage). Lanes (0,1) and (2,3) are Box-Muller pairs
 * from words (a, b): u = min((a + .5) 2^-32, 1), (sqrt(-2 log u) cos, sqrt(-2 log u) sin)(2 pi b /
 * 2^32), in float32 polynomials. */
FS_API int fs_noise_fill(const fs_noise_args* args);

/* ---- Moments --------------------------------------------------------------------------------- */

typedef struct fs_moments_args {
  uint32_t struct_size;  /* sizeof(fs_moments_args) */
  int32_t device, dtype; /* of a and b, any */
  int32_t P, Q;          /* 1..FS_MAX_MOMENTS_A, 0..FS_MAX_MOMENTS_B */
  int32_t threads;
  int64_t batch, elements;
  const void* a[FS_MAX_MOMENTS_A]; /* [B, D] each */
  const void* b[FS_MAX_MOMENTS_B]; /* [B, D] each */
  double* dots;                    /* [B, P, Q] = sum_d a_p[d] b_q[d] [not written] */
  double* max_abs; /* [B, P] = max_d |a_p[d]|, NaN if any is NaN, 0 if D = 0 [not written] */
  void* stream;    /* version 1 ends here */
  void* workspace; /* of the device, aligned to 8: at least fs_moments_workspace bytes; free
                      again once the call's work is done [none] */
  int64_t workspace_bytes; /* room there */
  int64_t gpu;             /* as in fs_step_args */
} fs_moments_args;

/* Dot products and largest magnitudes, per sample, in float64 on a fixed tree: a sample has the
 * same bits alone and in a batch, with any number of threads. Chunks of 1024 = 64 steps x 16 lanes
 * (lane = e mod 16), a last one filled up with zeros, each lane summed in turn from its first
 * product on (so that a sum of -0 is -0), lanes halved 16->8->4->2->1, chunk sums padded with zeros
 * to a power of two and halved the same way. */
FS_API int fs_moments(const fs_moments_args* args);

/* *bytes = the workspace that fs_moments needs for these sizes, 0 on the CPU. Arrays are not looked
 * at. */
FS_API int fs_moments_workspace(const fs_moments_args* args, int64_t* bytes);

/* ---- Cost matrix ----------------------------------------------------------------------------- */

typedef struct fs_cost_args {
  uint32_t struct_size;   /* sizeof(fs_cost_args) */
  int32_t device, dtype;  /* of U and X, any; FS_F64 computes in float64, the rest in float32 */
  int32_t terms;          /* R, 1..FS_MAX_TERMS */
  int64_t batch, I, J, D; /* I, J below 2^31 */
  const void* U[FS_MAX_TERMS]; /* [B, I, D] each */
  const double* c;             /* [R, I, J] */
  const void* X;               /* [B, J, D]; not read by fs_cost_gather */
  const int32_t* band;         /* [I, 2]: targets lo <= j < hi of source i [all] */
  const int32_t* i_star;       /* fs_cost_gather: [J] or [B, J], -1 = none */
  int64_t i_star_batch_stride; /* J, or 0: one i_star for all */
  double p;                    /* > 0, finite */
  void* out; /* fs_cost_matrix: double [B, I, J]; fs_cost_gather: [B, J, D] of dtype */
  int32_t threads, reserved;
  void* stream;    /* version 1 ends here */
  void* workspace; /* for fs_cost_matrix, as in fs_moments_args: fs_cost_workspace bytes */
  int64_t workspace_bytes;
  int64_t gpu; /* as in fs_step_args */
} fs_cost_args;

/* C[b,i,j] = (1/D) sum_d |sum_r U_r[b,i,d] c_r[i,j] - X[b,j,d]|^p, +infinity outside the band, NaN
 * if D = 0. Differences in float32 (direct, never a Gram matrix: that cancels), partial sums in
 * float64 at least every 256 elements. The same bits with any number of threads; not promised
 * across instruction sets. */
FS_API int fs_cost_matrix(const fs_cost_args* args);

/* *bytes = the workspace that fs_cost_matrix needs for these sizes, 0 on the CPU. Arrays are not
 * looked at. */
FS_API int fs_cost_workspace(const fs_cost_args* args, int64_t* bytes);

/* Z[b,j] = sum_r U_r[b,i*,:] c_r[i*,j] with i* = i_star[j]; NaN where i* = -1. FS_E_ARG if i* is
 * outside -1..I-1 (on the CPU, before anything is written; FS_CUDA writes NaN for it). */
FS_API int fs_cost_gather(const fs_cost_args* args);

#ifdef __cplusplus
}
#endif
#endif
