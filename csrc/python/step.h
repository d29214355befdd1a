// A step prepared once and called many times.
#pragma once

#include "core/dtype.h"
#include "core/sample.h"
#include "exchange.h"

namespace fastsample_python {

// An fs_step_args filled once, with `row_words` the host's copy of the whole table's ints [R, WI].
// Each call works on a copy that has its own row, model outputs and state.
class Step {
 public:
  explicit Step(const py::kwargs& values) : args_(empty<fs_step_args>()) {
    args_.groups = args_.copies = 1;
    args_.pool = args_.outputs = args_.mask_batch_stride = args_.known_batch_stride = kDefault;
    for (const auto& item : values)
      set(py::cast<std::string>(item.first), py::reinterpret_borrow<py::object>(item.second));
  }

  void set(const std::string& name, const py::object& value) {
    if (name == "f") return fill("f", args_.f, py::cast<Addresses>(value));
    if (name == "noise") return fill("noise", args_.noise, py::cast<Addresses>(value));
    const Field& field = find(name);
    int64_t number;
    if (!py::isinstance<py::str>(value)) number = py::cast<int64_t>(value);
    else if (name == "device") return set_device(device_of(py::cast<std::string>(value)));
    else number = dtype_of(py::cast<std::string>(value));
    const int32_t narrow = static_cast<int32_t>(number);
    if (field.size == sizeof narrow && narrow != number)
      throw py::value_error("Step: a size beyond 32 bits; check the sizes");
    std::memcpy(reinterpret_cast<char*>(&args_) + field.at,
                field.size == sizeof narrow ? static_cast<const void*>(&narrow) : &number,
                field.size);
  }

  int64_t get(const std::string& name) const {
    const Field& field = find(name);
    const char* from = reinterpret_cast<const char*>(&args_) + field.at;
    int32_t narrow;
    int64_t number;
    if (field.size == sizeof narrow) return std::memcpy(&narrow, from, sizeof narrow), narrow;
    return std::memcpy(&number, from, sizeof number), number;
  }

  // One launch: a row of the table for every sample (-1 = the bound row vector); the outputs of the
  // first branches, NULL = the bound ones.
  void at(int32_t row, const Address* f, size_t given) const {
    fs_step_args now = of_row(row);
    launch(now, f, given);
  }

  // Branch g's outputs at rows g B.. of [branches B, D] at f; x read at x_in and written at x_out.
  // 0: what is bound.
  void move(int32_t row, Address f, Address x_in, Address x_out) const {
    fs_step_args now = of_row(row);
    Address each[FS_MAX_BRANCHES];
    const int64_t bytes = now.batch * now.elements * fs::dtype_size(now.model_dtype);
    for (int g = 0; g < branches_; ++g) each[g] = f + static_cast<Address>(g * bytes);
    if (x_in) now.x_in = pointer(x_in);
    if (x_out) now.x_out = pointer(x_out);
    launch(now, each, f ? static_cast<size_t>(branches_) : 0);
  }

  void expect(const py::object& f, int branches) {
    if (branches < 1 || branches > FS_MAX_BRANCHES)
      throw py::value_error("Step.expect: " + std::to_string(branches) +
                            " branches; 1 to 8 are accepted");
    model_ = Like("Step.expect", f, branches * args_.batch * args_.elements, args_.model_dtype,
                  args_.device);
    branches_ = branches;
  }

  void expect_state(const py::object& x) {
    const int64_t pool = args_.pool == kDefault ? args_.batch : args_.pool;
    state_ = Like("Step.expect_state", x, pool * args_.elements, args_.state_dtype, args_.device);
  }

  // move() on tensors; false, and nothing done, where one is not what was expected.
  bool take(int32_t row, PyObject* f) const {
    const Address at = model_.find(f);
    if (at) move(row, at, 0, 0);
    return at != 0;
  }

  // Does it lie as the state does?
  bool lies(PyObject* x) const { return state_.find(x) != 0; }

  // None: what is bound.
  bool carry(int32_t row, PyObject* f, PyObject* x_in, PyObject* x_out) const {
    Address at[3] = {};
    if ((f != Py_None && !(at[0] = model_.find(f))) ||
        (x_in != Py_None && !(at[1] = state_.find(x_in))) ||
        (x_out != Py_None && !(at[2] = state_.find(x_out))))
      return false;
    move(row, at[0], at[1], at[2]);
    return true;
  }

 private:
  static constexpr int64_t kDefault = INT64_MIN;  // follows batch or elements

  struct Field {
    size_t at, size;
  };

  static const Field& find(const std::string& name) {
#define FS_FIELDS(X)                                                                               \
  X(device), X(state_dtype), X(model_dtype), X(batch), X(elements), X(pool), X(outputs),           \
      X(groups), X(inner), X(S), X(G), X(L), X(K), X(E), X(copies), X(table_rows), X(table_f),     \
      X(table_i), X(x), X(slots), X(model_input), X(row), X(place), X(f_index), X(scale), X(seed), \
      X(noise_scale), X(weights), X(bound), X(mask), X(mask_batch_stride), X(known),               \
      X(known_batch_stride), X(t_out), X(preview), X(status), X(threads), X(stream), X(x_in),      \
      X(x_out), X(stage), X(row_words), X(one_row), X(row_number), X(t_dtype), X(slot_stride),     \
      X(gpu), X(channels)
#define FS_FIELD(name)                                                  \
  {                                                                     \
    #name, { offsetof(fs_step_args, name), sizeof(fs_step_args::name) } \
  }
    static const std::map<std::string, Field> table{FS_FIELDS(FS_FIELD)};
#undef FS_FIELD
#undef FS_FIELDS
    const auto found = table.find(name);
    if (found == table.end())
      throw py::attribute_error(
          "Step: '" + name + "' is no argument of a step; the fields of fs_step_args are accepted");
    return found->second;
  }

  void set_device(const DeviceName& named) { args_.device = named.device, args_.gpu = named.gpu; }

  static void resolve(fs_step_args& args) {
    if (args.pool == kDefault) args.pool = args.batch;
    if (args.outputs == kDefault) args.outputs = args.batch;
    if (args.mask_batch_stride == kDefault) args.mask_batch_stride = args.elements;
    if (args.known_batch_stride == kDefault) args.known_batch_stride = args.elements;
  }

  fs_step_args of_row(int32_t row) const {
    fs_step_args now = args_;
    if (row < 0) return now;
    now.one_row = 1, now.row_number = row;
    if (now.row_words) now.row_words += row * fs::dims_of(now).ints();
    return now;
  }

  static void launch(fs_step_args& now, const Address* f, size_t given) {
    if (given > FS_MAX_BRANCHES)
      throw py::value_error("step: " + std::to_string(given) +
                            " model outputs; at most 8 are accepted");
    for (size_t g = 0; g < given; ++g) now.f[g] = pointer(f[g]);
    resolve(now);
    // About 1 ns an element, and as much for a normal that may be drawn.
    run(now.device, product({now.batch, now.elements, 1 + now.L}), [&] { return fs_step(&now); });
  }

  fs_step_args args_;
  Like model_, state_;
  int branches_ = 1;
};

}  // namespace fastsample_python
