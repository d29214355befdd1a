// A step prepared once and called many times.
#pragma once

#include "convert.h"

namespace fastsample_python {

// An fs_step_args filled once; each call changes the row's address and the model outputs.
class Step {
 public:
  explicit Step(const py::kwargs& values) : args_(empty<fs_step_args>()) {
    args_.groups = args_.copies = 1;
    args_.pool = args_.outputs = args_.mask_batch_stride = args_.known_batch_stride = kDefault;
    for (const auto& item : values)
      set(py::cast<std::string>(item.first), py::reinterpret_borrow<py::object>(item.second));
  }

  void set(const std::string& name, const py::object& value) {
    const auto number = numbers().find(name);
    const auto address = addresses().find(name);
    if (number != numbers().end()) put(args_, number->second, py::cast<int64_t>(value));
    else if (address != addresses().end())
      put(args_, {address->second, true}, static_cast<int64_t>(py::cast<Address>(value)));
    else if (name == "f") fill("f", args_.f, py::cast<Addresses>(value));
    else if (name == "noise") fill("noise", args_.noise, py::cast<Addresses>(value));
    else if (name == "state_dtype") args_.state_dtype = dtype_of(py::cast<std::string>(value));
    else if (name == "model_dtype") args_.model_dtype = dtype_of(py::cast<std::string>(value));
    else if (name == "device") args_.device = device_of(py::cast<std::string>(value));
    else
      throw py::attribute_error(
          "Step: '" + name + "' is no argument of a step; the fields of fs_step_args are accepted");
  }

  py::object get(const std::string& name) const {
    const auto number = numbers().find(name);
    const auto address = addresses().find(name);
    if (number != numbers().end()) return py::int_(take(args_, number->second));
    if (address == addresses().end())
      throw py::attribute_error("Step: '" + name + "' is no number or address of a step");
    Address value;
    std::memcpy(&value, reinterpret_cast<const char*>(&args_) + address->second, sizeof value);
    return py::int_(value);
  }

  int call(Address row, const Address* f, int given) {
    if (given > FS_MAX_BRANCHES)
      throw py::value_error("step: " + std::to_string(given) +
                            " model outputs; at most 8 are accepted");
    args_.row = pointer<const int32_t>(row);
    for (int g = 0; g < given; ++g) args_.f[g] = pointer(f[g]);
    fs_step_args now = args_;
    if (now.pool == kDefault) now.pool = now.batch;
    if (now.outputs == kDefault) now.outputs = now.batch;
    if (now.mask_batch_stride == kDefault) now.mask_batch_stride = now.elements;
    if (now.known_batch_stride == kDefault) now.known_batch_stride = now.elements;
    // About 1 ns an element, and as much for a normal that may be drawn.
    run(product({now.batch, now.elements, 1 + now.L}), [&] { return fs_step(&now); });
    return 0;
  }

 private:
  static constexpr int64_t kDefault = INT64_MIN;  // follows batch or elements

  struct Number {
    size_t at;
    bool wide;
  };

  static char* bytes(fs_step_args& args) { return reinterpret_cast<char*>(&args); }

  static void put(fs_step_args& args, const Number& number, int64_t value) {
    if (number.wide) {
      std::memcpy(bytes(args) + number.at, &value, 8);
      return;
    }
    if (value < INT32_MIN || value > INT32_MAX)
      throw py::value_error("Step: a size beyond 32 bits; check the sizes");
    const int32_t narrow = static_cast<int32_t>(value);
    std::memcpy(bytes(args) + number.at, &narrow, 4);
  }

  static int64_t take(const fs_step_args& args, const Number& number) {
    const char* from = reinterpret_cast<const char*>(&args) + number.at;
    int64_t value = 0;
    int32_t narrow = 0;
    std::memcpy(&value, from, number.wide ? 8 : 0);
    std::memcpy(&narrow, from, number.wide ? 0 : 4);
    return number.wide ? value : narrow;
  }

  static const std::map<std::string, Number>& numbers() {
#define FS_WIDE(name)                             \
  {                                               \
    #name, { offsetof(fs_step_args, name), true } \
  }
#define FS_NARROW(name)                            \
  {                                                \
    #name, { offsetof(fs_step_args, name), false } \
  }
    static const std::map<std::string, Number> table{FS_WIDE(batch),
                                                     FS_WIDE(elements),
                                                     FS_WIDE(pool),
                                                     FS_WIDE(outputs),
                                                     FS_WIDE(groups),
                                                     FS_WIDE(inner),
                                                     FS_WIDE(table_rows),
                                                     FS_WIDE(mask_batch_stride),
                                                     FS_WIDE(known_batch_stride),
                                                     FS_NARROW(S),
                                                     FS_NARROW(G),
                                                     FS_NARROW(L),
                                                     FS_NARROW(K),
                                                     FS_NARROW(E),
                                                     FS_NARROW(copies),
                                                     FS_NARROW(threads)};
#undef FS_WIDE
#undef FS_NARROW
    return table;
  }

  static const std::map<std::string, size_t>& addresses() {
#define FS_ADDRESS(name)                \
  {                                     \
    #name, offsetof(fs_step_args, name) \
  }
    static const std::map<std::string, size_t> table{
        FS_ADDRESS(table_f),     FS_ADDRESS(table_i), FS_ADDRESS(x),           FS_ADDRESS(slots),
        FS_ADDRESS(model_input), FS_ADDRESS(row),     FS_ADDRESS(place),       FS_ADDRESS(f_index),
        FS_ADDRESS(scale),       FS_ADDRESS(seed),    FS_ADDRESS(noise_scale), FS_ADDRESS(weights),
        FS_ADDRESS(bound),       FS_ADDRESS(mask),    FS_ADDRESS(known),       FS_ADDRESS(t_out),
        FS_ADDRESS(preview),     FS_ADDRESS(status),  FS_ADDRESS(stream)};
#undef FS_ADDRESS
    return table;
  }

  fs_step_args args_;
};

}  // namespace fastsample_python
