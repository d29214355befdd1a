// Python's words and errors in the C interface's terms.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <map>
#include <string>
#include <vector>

#include "fastsample/fastsample.h"

namespace fastsample_python {

namespace py = pybind11;

using Address = uintptr_t;
using Addresses = std::vector<Address>;

// A call expected to be shorter keeps the GIL: taking it back beside a busy thread can cost
// milliseconds.
constexpr double kReleaseFrom = 200e3;  // nanoseconds

template <class T = void>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

inline void check(int status) {
  if (status == FS_OK) return;
  const char* sentence = fs_last_error();
  switch (status) {
    case FS_E_MEMORY: PyErr_SetString(PyExc_MemoryError, sentence); break;
    case FS_E_UNSUPPORTED: PyErr_SetString(PyExc_NotImplementedError, sentence); break;
    case FS_E_INTERNAL:
    case FS_E_DEVICE: PyErr_SetString(PyExc_RuntimeError, sentence); break;
    default: PyErr_SetString(PyExc_ValueError, sentence);
  }
  throw py::error_already_set();
}

inline int32_t dtype_of(const std::string& name) {
  static const std::map<std::string, int32_t> numbers{
      {"float32", FS_F32}, {"float64", FS_F64}, {"float16", FS_F16}, {"bfloat16", FS_BF16}};
  const auto found = numbers.find(name);
  if (found == numbers.end())
    throw py::value_error("dtype: '" + name +
                          "'; float32, float64, float16 and bfloat16 are accepted");
  return found->second;
}

// cpu, cuda (the device that is current) or cuda:0, cuda:1, ...
struct DeviceName {
  int32_t device;
  int64_t gpu;  // as in fs_step_args
};

inline DeviceName device_of(const std::string& name) {
  if (name == "cpu") return {FS_CPU, 0};
  const std::string kind = name.substr(0, 5), number = kind == "cuda:" ? name.substr(5) : "";
  const bool digits = !number.empty() && number.size() < 5 &&
                      number.find_first_not_of("0123456789") == std::string::npos;
  if (name != "cuda" && !digits)
    throw py::value_error("device: '" + name + "'; cpu and cuda are accepted");
  return {FS_CUDA, digits ? 1 + std::stoll(number) : 0};
}

template <class Args>
Args empty() {
  Args args = {};
  args.struct_size = sizeof args;
  return args;
}

template <class Args>
Args empty(const std::string& device, Address stream) {
  Args args = empty<Args>();
  const DeviceName named = device_of(device);
  args.device = named.device, args.gpu = named.gpu, args.stream = pointer(stream);
  return args;
}

template <class Pointer, size_t N>
void fill(const char* name, Pointer (&to)[N], const Addresses& from) {
  if (from.size() > N)
    throw py::value_error(std::string(name) + ": " + std::to_string(from.size()) +
                          " addresses; at most " + std::to_string(N) + " are accepted");
  for (size_t k = 0; k < N; ++k) to[k] = k < from.size() ? pointer(from[k]) : nullptr;
}

// `expected`: nanoseconds on one thread of the CPU, roughly; a GPU is not waited for.
template <class Call>
void run(int32_t device, double expected, const Call& call) {
  int status;
  if (device != FS_CPU || expected < kReleaseFrom) {
    status = call();
  } else {
    // The sentence is per thread, so it is still there with the GIL back.
    py::gil_scoped_release release;
    status = call();
  }
  check(status);
}

inline double product(std::initializer_list<int64_t> sizes) {
  double out = 1;
  for (const int64_t size : sizes) out *= static_cast<double>(size);
  return out;
}

}  // namespace fastsample_python
