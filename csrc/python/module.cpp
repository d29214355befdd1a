// fastsample._C: the C interface for Python, thin. Arrays arrive as addresses;
// fastsample.kernels.native holds the tensors they belong to.

#include <memory>

#include "cpu/kernels.h"
#include "step.h"

namespace fastsample_python {
namespace {

// Sum of squares of n numbers in the CPU's memory; see cpu/kernels.h.
double energy(Address data, int64_t n, const std::string& dtype) {
  const int32_t number = dtype_of(dtype);
  double sum = 0;
  run(FS_CPU, static_cast<double>(n) / 20, [&] {
    sum = fs::cpu_energy(pointer<const void>(data), number, n);
    return FS_OK;
  });
  return sum;
}

void noise_fill(Address out, int64_t batch, int64_t elements, uint32_t id, Address seed,
                Address stage, const std::string& dtype, int threads, const std::string& device,
                Address stream) {
  fs_noise_args args = empty<fs_noise_args>(device, stream);
  args.dtype = dtype_of(dtype);
  args.id = id;
  args.batch = batch, args.elements = elements, args.threads = threads;
  args.seed = pointer<const uint64_t>(seed), args.stage = pointer<const uint32_t>(stage);
  args.out = pointer(out);
  run(args.device, product({batch, elements}), [&] { return fs_noise_fill(&args); });
}

fs_moments_args moments_args(int32_t P, int32_t Q, int64_t batch, int64_t elements,
                             const std::string& dtype, const std::string& device, Address stream) {
  fs_moments_args args = empty<fs_moments_args>(device, stream);
  args.dtype = dtype_of(dtype);
  args.P = P, args.Q = Q, args.batch = batch, args.elements = elements;
  return args;
}

int64_t moments_workspace(int32_t P, int32_t Q, int64_t batch, int64_t elements,
                          const std::string& dtype, const std::string& device, Address stream) {
  const fs_moments_args args = moments_args(P, Q, batch, elements, dtype, device, stream);
  int64_t bytes;
  check(fs_moments_workspace(&args, &bytes));
  return bytes;
}

void moments(const Addresses& a, const Addresses& b, int64_t batch, int64_t elements, Address dots,
             Address max_abs, const std::string& dtype, int threads, const std::string& device,
             Address stream, Address workspace, int64_t workspace_bytes) {
  fs_moments_args args =
      moments_args(static_cast<int32_t>(a.size()), static_cast<int32_t>(b.size()), batch, elements,
                   dtype, device, stream);
  fill("a", args.a, a);
  fill("b", args.b, b);
  args.threads = threads;
  args.workspace = pointer(workspace), args.workspace_bytes = workspace_bytes;
  args.dots = pointer<double>(dots), args.max_abs = pointer<double>(max_abs);
  run(args.device, product({batch, elements, args.P, 2 + args.Q}) / 2,
      [&] { return fs_moments(&args); });
}

fs_cost_args cost_args(const Addresses& U, Address c, Address out, int64_t batch, int64_t I,
                       int64_t J, int64_t D, const std::string& dtype, int threads,
                       const std::string& device, Address stream) {
  fs_cost_args args = empty<fs_cost_args>(device, stream);
  args.dtype = dtype_of(dtype);
  fill("U", args.U, U);
  args.terms = static_cast<int32_t>(U.size());
  args.c = pointer<const double>(c);
  args.out = pointer(out);
  args.batch = batch, args.I = I, args.J = J, args.D = D, args.threads = threads;
  return args;
}

int64_t cost_workspace(int32_t terms, int64_t batch, int64_t I, int64_t J, int64_t D,
                       const std::string& dtype, const std::string& device, Address stream) {
  fs_cost_args args = cost_args({}, 0, 0, batch, I, J, D, dtype, 0, device, stream);
  args.terms = terms;
  int64_t bytes;
  check(fs_cost_workspace(&args, &bytes));
  return bytes;
}

void cost_matrix(const Addresses& U, Address c, Address X, Address band, Address out, int64_t batch,
                 int64_t I, int64_t J, int64_t D, double p, const std::string& dtype, int threads,
                 const std::string& device, Address stream, Address workspace,
                 int64_t workspace_bytes) {
  fs_cost_args args = cost_args(U, c, out, batch, I, J, D, dtype, threads, device, stream);
  args.X = pointer(X);
  args.band = pointer<const int32_t>(band);
  args.workspace = pointer(workspace), args.workspace_bytes = workspace_bytes;
  args.p = p;
  run(args.device, product({batch, I, J, D, args.terms}) / 30,
      [&] { return fs_cost_matrix(&args); });
}

void cost_gather(const Addresses& U, Address c, Address i_star, int64_t i_star_batch_stride,
                 Address out, int64_t batch, int64_t I, int64_t J, int64_t D,
                 const std::string& dtype, int threads, const std::string& device, Address stream) {
  fs_cost_args args = cost_args(U, c, out, batch, I, J, D, dtype, threads, device, stream);
  args.i_star = pointer<const int32_t>(i_star);
  args.i_star_batch_stride = i_star_batch_stride;
  run(args.device, product({batch, J, D, args.terms}), [&] { return fs_cost_gather(&args); });
}

py::dict parse_plan(const std::string& data) {
  fs_plan* parsed = nullptr;
  check(fs_plan_parse(data.data(), data.size(), &parsed));
  const std::unique_ptr<fs_plan, decltype(&fs_plan_free)> plan(parsed, &fs_plan_free);
  fs_info info = empty<fs_info>();
  check(fs_plan_info(plan.get(), &info));
  py::list entries;
  for (int64_t i = 0; i < info.rows; ++i) {
    fs_row_info row = empty<fs_row_info>();
    check(fs_plan_row(plan.get(), i, &row));
    if (row.entry) entries.append(i);
  }
  py::dict out;
  out["R"] = info.rows;
  out["S"] = info.S;
  out["G"] = info.G;
  out["L"] = info.L;
  out["K"] = info.K;
  out["E"] = info.E;
  out["W"] = info.operands;
  out["nfe"] = info.nfe;
  out["entries"] = entries;
  out["note"] = std::string(fs_plan_note(plan.get()));
  return out;
}

py::object build_info() { return py::module_::import("json").attr("loads")(fs_build_info()); }

}  // namespace

PYBIND11_MODULE(_C, module) {
  using namespace py::literals;
  module.doc() =
      "The C interface of fastsample, on raw addresses; see fastsample.h for what each call "
      "computes.";
  py::class_<Step>(module, "Step")
      .def(py::init<const py::kwargs&>())
      .def(
          "at", [](const Step& step, int32_t row, Address f) { step.at(row, &f, 1); }, "row"_a,
          "f"_a, py::pos_only())
      .def("at",
           [](const Step& step, int32_t row, const py::args& outputs) {
             Address f[FS_MAX_BRANCHES];
             for (size_t g = 0; g < outputs.size() && g < FS_MAX_BRANCHES; ++g)
               f[g] = py::cast<Address>(outputs[g]);
             step.at(row, f, outputs.size());
           })
      .def("move", &Step::move, "row"_a, "f"_a, "x_in"_a, "x_out"_a, py::pos_only())
      .def(
          "take",
          [](const Step& step, int32_t row, py::handle f) { return step.take(row, f.ptr()); },
          "row"_a, "f"_a, py::pos_only())
      .def(
          "carry",
          [](const Step& step, int32_t row, py::handle f, py::handle x_in, py::handle x_out) {
            return step.carry(row, f.ptr(), x_in.ptr(), x_out.ptr());
          },
          "row"_a, "f"_a, "x_in"_a, "x_out"_a, py::pos_only())
      .def(
          "lies", [](const Step& step, py::handle x) { return step.lies(x.ptr()); }, "x"_a,
          py::pos_only())
      .def("expect", &Step::expect, "f_like"_a, "branches"_a = 1)
      .def("expect_state", &Step::expect_state, "x_like"_a)
      .def("set", &Step::set, "name"_a, "value"_a)
      .def("get", &Step::get, "name"_a)
      .def("copy", [](const Step& step) { return Step(step); });
  module.def("use_exchange", &use_exchange, "tensor_type"_a);
  module.def("seen", &seen, "tensors"_a, py::pos_only());
  module.def("energy", &energy, "address"_a, "n"_a, "dtype"_a = "float32");
  module.def("noise_fill", &noise_fill, py::kw_only(), "out"_a, "batch"_a, "elements"_a, "id"_a = 0,
             "seed"_a = 0, "stage"_a = 0, "dtype"_a = "float32", "threads"_a = 0,
             "device"_a = "cpu", "stream"_a = 0);
  module.def("moments", &moments, py::kw_only(), "a"_a, "b"_a, "batch"_a, "elements"_a,
             "dots"_a = 0, "max_abs"_a = 0, "dtype"_a = "float32", "threads"_a = 0,
             "device"_a = "cpu", "stream"_a = 0, "workspace"_a = 0, "workspace_bytes"_a = 0);
  module.def("moments_workspace", &moments_workspace, py::kw_only(), "P"_a, "Q"_a, "batch"_a,
             "elements"_a, "dtype"_a, "device"_a = "cpu", "stream"_a = 0);
  module.def("cost_matrix", &cost_matrix, py::kw_only(), "U"_a, "c"_a, "X"_a, "band"_a, "out"_a,
             "batch"_a, "I"_a, "J"_a, "D"_a, "p"_a = 2.0, "dtype"_a = "float32", "threads"_a = 0,
             "device"_a = "cpu", "stream"_a = 0, "workspace"_a = 0, "workspace_bytes"_a = 0);
  module.def("cost_workspace", &cost_workspace, py::kw_only(), "terms"_a, "batch"_a, "I"_a, "J"_a,
             "D"_a, "dtype"_a, "device"_a = "cpu", "stream"_a = 0);
  module.def("cost_gather", &cost_gather, py::kw_only(), "U"_a, "c"_a, "i_star"_a,
             "i_star_batch_stride"_a, "out"_a, "batch"_a, "I"_a, "J"_a, "D"_a,
             "dtype"_a = "float32", "threads"_a = 0, "device"_a = "cpu", "stream"_a = 0);
  module.def("parse_plan", &parse_plan, "data"_a);
  module.def("build_info", &build_info);
}

}  // namespace fastsample_python
