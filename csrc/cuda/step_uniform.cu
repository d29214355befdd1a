// One row, decoded by the host, over quads of elements (step_uniform.h). Compile with
// --fmad=false: products are rounded before sums, terms are added in the order of fastsample.h.

#include "step_uniform.h"

#include "launch.h"
#include "quad.h"
#include "step.h"

namespace fs {
namespace {

// The numbers of the row that a form may need.
template <int S, int G>
struct Numbers {
  float x[S + 3], u[S + 3];  // columns: x, slots, m, noise
  float weight[G], w0p, q, clip, dx, dm, c;
};

template <class F, int S, int G>
struct Operands {
  Quad<float> x, slot[S];
  Quad<F> f[G];
};

struct Noise {
  Draw draw;
  float scale;
};

template <class F, int S, int G>
__device__ __forceinline__ void load_operands(const Uniform& row, int64_t at,
                                              Operands<F, S, G>& operands) {
  if (row.x_in) operands.x = load<true>(row.x_in + at);
#pragma unroll
  for (int k = 0; k < G; ++k) {
    if (k < row.branches) operands.f[k] = load<true>(static_cast<const F*>(row.f[k]) + at);
  }
#pragma unroll
  for (int k = 0; k < S; ++k) {
    if (k < row.slots) operands.slot[k] = load<true>(row.slot[k] + at);
  }
}

template <int S, int G, bool WithNoise>
__device__ __forceinline__ void load_numbers(const Uniform& row, int64_t b,
                                             Numbers<S, G>& numbers) {
  const Dims& d = row.dims;
  const float* from = row.number;
  const int W = d.W();
  const auto column = [&](int k, int at) { numbers.x[k] = from[at], numbers.u[k] = from[W + at]; };
  column(0, 0);
#pragma unroll
  for (int k = 0; k < S; ++k) {
    if (k < row.slots) column(1 + k, row.column[k]);
  }
  column(1 + S, row.m);
  if (WithNoise && row.id) column(2 + S, row.noise);
  numbers.w0p = from[d.p()], numbers.q = from[d.q()], numbers.clip = from[d.clip()];
  numbers.dx = from[d.dx()], numbers.dm = from[d.dx() + 1], numbers.c = from[d.c()];
#pragma unroll
  for (int k = 0; k < G; ++k) {
    if (k >= row.branches) continue;
    numbers.weight[k] = from[d.U() + row.weight[k]];
#pragma unroll 1
    for (int i = 0; row.scale && i < d.K; ++i)
      numbers.weight[k] =
          numbers.weight[k] + row.scale[b * d.K + i] * from[d.V() + row.weight[k] * d.K + i];
  }
}

// m = clip(p x + q f).
template <class F, int S, int G>
__device__ __forceinline__ Quad<float> predict(const Uniform& row, const Numbers<S, G>& numbers,
                                               const Operands<F, S, G>& operands) {
  Quad<float> f = no_sum<float>(), m = no_sum<float>();
#pragma unroll
  for (int k = 0; k < G; ++k) {
    if (k < row.branches) add(f, numbers.weight[k], widened<float>(operands.f[k]));
  }
  if (row.branches == 0) f = Quad<float>{};
  add(m, numbers.w0p, operands.x);
  if (row.called) add(m, numbers.q, f);
  if (numbers.clip > 0) clamp(m, numbers.clip);
  return m;
}

// A quad at element e of its sample, `at` numbers from the row's pointers. True when every x' is
// finite.
template <class F, int S, int G, bool WithNoise>
__device__ __forceinline__ bool run_quad(const Uniform& row, const Numbers<S, G>& numbers,
                                         const Noise& noise, int64_t e, int64_t at,
                                         const Operands<F, S, G>& operands) {
  Quad<float> x = no_sum<float>(), u = no_sum<float>();
  const auto column = [&](int k, const Quad<float>& value) {
    add(x, numbers.x[k], value), add(u, numbers.u[k], value);
  };
  const Quad<float> m = predict(row, numbers, operands);
  if (row.x_read) column(0, operands.x);
#pragma unroll
  for (int k = 0; k < S; ++k) {
    if (k < row.slots) column(1 + k, operands.slot[k]);
  }
  if (row.m_read) column(1 + S, m);
  if (WithNoise && row.id) {
    Quad<float> n = normals_quad<float>(noise.draw, static_cast<uint64_t>(e / kQuad));
#pragma unroll
    for (int k = 0; k < kQuad; ++k) n.at[k] = n.at[k] * noise.scale;  // by 1 where there is none
    column(2 + S, n);
  } else if (!row.x_read && !row.m_read && row.slots == 0) {
    x = u = Quad<float>{};
  }
  if (row.preview) {
    Quad<float> image = no_sum<float>();
    add(image, numbers.dx, operands.x), add(image, numbers.dm, m);
    store<true>(row.preview + at, image);
  }
  store<true>(row.x + at, x);
  if (row.u) store<true>(row.u + at, u);
  if (row.model_input) {
    const Quad<F> input = scaled<F>(numbers.c, x);
#pragma unroll 1
    for (int64_t copy = 0; copy < row.copies; ++copy)
      store<true>(static_cast<F*>(row.model_input) + copy * row.batch * row.elements + at, input);
  }
  return is_finite(x, kQuad);
}

__device__ __forceinline__ void write_times(const Uniform& row, int64_t b) {
  const int k = static_cast<int>(threadIdx.x), E = row.dims.E;
  if (k >= E) return;
  row.t_out[b * E + k] = row.number[row.dims.t() + k];
}

// The quads of a thread in sample b. Its first operands are on their way before any number of the
// table: the compiler keeps a number that all threads share in a register of all, and waits for it
// as soon as it is asked for.
template <class F, int S, int G, bool WithNoise>
__device__ __forceinline__ void run_sample(const Uniform& row, int64_t b) {
  const int64_t base = b * row.elements, stride = int64_t{gridDim.x} * blockDim.x * kQuad;
  int64_t e = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * kQuad;
  Operands<F, S, G> operands;
  if (e < row.elements) load_operands(row, base + e, operands);
  asm volatile("" ::: "memory");
  Numbers<S, G> numbers;
  load_numbers<S, G, WithNoise>(row, b, numbers);
  Noise noise{{static_cast<uint64_t>(b), 0, 0}, 1};
  if (WithNoise && row.id) {
    if (row.seed) noise.draw.seed = row.seed[b];
    if (row.stage) noise.draw.stage = row.stage[b];
    if (row.noise_scale) noise.scale = row.noise_scale[b];
    noise.draw.id = static_cast<uint32_t>(*row.id);
  }
  bool finite = true;
#pragma unroll 1
  while (e < row.elements) {
    finite &= run_quad<F, S, G, WithNoise>(row, numbers, noise, e, base + e, operands);
    e += stride;
    if (e < row.elements) load_operands(row, base + e, operands);
  }
  if (row.t_out && blockIdx.x == 0) write_times(row, b);
  if (!finite && row.status && (row.status[b] & 0xFF) == 0) row.status[b] = row.not_finite;
}

template <class F, int S, int G, bool WithNoise>
__global__ void __launch_bounds__(kMostThreads) step_uniform(const __grid_constant__ Uniform row) {
#pragma unroll 1
  for (int64_t b = blockIdx.y; b < row.batch; b += gridDim.y)
    run_sample<F, S, G, WithNoise>(row, b);
}

// The kernel of a form; the forms are those of the table in rules.h.
template <class F, size_t Number = 0>
void launch_form(const Form* form, const Uniform& row, const Call& call) {
  if constexpr (Number < std::size(kForms)) {
    constexpr const Form& known = kForms[Number];
    if (form != &known) return launch_form<F, Number + 1>(form, row, call);
    const Cut cut = cut_of(row.batch, row.elements);
    call.launch(known.name, step_uniform<F, known.slots, known.branches, known.noise>, cut.grid,
                cut.threads, row);
  }
}

}  // namespace

bool launch_step_uniform(const fs_step_args& a, const Call& call, bool whole) {
  if (!whole || !is_uniform(a)) return false;
  const Dims d = dims_of(a);
  const Structure s = structure_of(a.row_words);
  Reads reads;
  if (!is_uniform(a, d, s, reads)) return false;
  const Form* form = form_of(reads);
  if (!form) return false;
  const Uniform row = find_row(a, d, s);
  switch (a.model_dtype) {
    case FS_F32: launch_form<float>(form, row, call); break;
    case FS_F16: launch_form<Half>(form, row, call); break;
    default: launch_form<Bfloat>(form, row, call);
  }
  return true;
}

}  // namespace fs
