// A tensor looked at from C without its library's headers, by the table of functions that its type
// carries as __dlpack_c_exchange_api__ (DLPack 1.2). Nothing is owned, copied or waited for.
#pragma once

#include "convert.h"

namespace fastsample_python {

struct TensorView {  // DLTensor
  char* data;
  int32_t device_type, device_id, dims;
  uint8_t code, bits;
  uint16_t lanes;
  const int64_t *shape, *strides;  // strides in elements; NULL = contiguous
  uint64_t byte_offset;

  int64_t elements() const {
    int64_t count = 1;
    for (int k = 0; k < dims; ++k) count *= shape[k];
    return count;
  }

  // Every number from the first to the last is one of the tensor's.
  bool is_dense() const {
    int64_t last = 0;
    for (int k = 0; strides && k < dims; ++k) last += (shape[k] - 1) * strides[k];
    return !strides || last + 1 == elements();
  }

  // Strides of `wanted`, axes of length 1 apart, which lie anywhere.
  bool lies_as(const std::vector<int64_t>& wanted) const {
    int64_t step = 1;
    for (int k = dims - 1; k >= 0; step *= shape[k--]) {
      if (shape[k] != 1 && (strides ? strides[k] : step) != wanted[k]) return false;
    }
    return true;
  }
};

struct ExchangeTable {  // DLPackExchangeAPI
  uint32_t major, minor;
  const ExchangeTable* previous;
  void* others[3];
  int (*view)(PyObject* tensor, TensorView* out);  // 0 = done, else a Python error is set
};

inline const ExchangeTable* exchange = nullptr;
inline PyTypeObject* exchange_type = nullptr;

// Looks up the table of `type`; (major, minor) of DLPack.
inline py::tuple use_exchange(const py::type& type) {
  constexpr uint32_t kMajor = 1;
  const char* name = "__dlpack_c_exchange_api__";
  if (!py::hasattr(type, name)) {
    PyErr_Format(PyExc_NotImplementedError,
                 "use_exchange: %R has no %s; a tensor type with a DLPack exchange table is needed",
                 type.ptr(), name);
    throw py::error_already_set();
  }
  const py::object capsule = type.attr(name);
  const auto* table =
      static_cast<const ExchangeTable*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  if (!table) throw py::error_already_set();
  if (table->major != kMajor || !table->view) {
    PyErr_Format(PyExc_NotImplementedError,
                 "use_exchange: %R has an exchange table of DLPack %u.%u, view: %s; %u with a view "
                 "is accepted",
                 type.ptr(), table->major, table->minor, table->view ? "yes" : "no", kMajor);
    throw py::error_already_set();
  }
  exchange = table;
  exchange_type = reinterpret_cast<PyTypeObject*>(type.inc_ref().ptr());
  return py::make_tuple(table->major, table->minor);
}

// Where and how each of these tensors lies, as bytes that tell it from any other; None = absent.
// None where one is not of the type given to use_exchange.
inline py::object seen(const py::tuple& tensors) {
  std::string said;
  const auto add = [&](const void* from, size_t n) {
    said.append(static_cast<const char*>(from), n);
  };
  for (const py::handle tensor : tensors) {
    TensorView view{};
    if (!tensor.is_none()) {
      if (Py_TYPE(tensor.ptr()) != exchange_type) return py::none();
      if (exchange->view(tensor.ptr(), &view) != 0) return PyErr_Clear(), py::none();
    }
    const size_t n = view.dims * sizeof *view.shape;
    add(&view, offsetof(TensorView, shape));
    add(&view.byte_offset, sizeof view.byte_offset);
    add(view.shape, n);
    add(view.strides, view.strides ? n : 0);
  }
  return py::bytes(said);
}

// What a tensor must be: of the very class, device, dtype, shape and strides of another.
class Like {
 public:
  Like() = default;

  // `elements` numbers of `dtype` on `device` are needed.
  Like(const char* where, const py::handle& tensor, int64_t elements, int32_t dtype,
       int32_t device) {
    if (!exchange || Py_TYPE(tensor.ptr()) != exchange_type)
      throw py::type_error(std::string(where) +
                           ": no tensor of the type given to use_exchange; one is needed");
    TensorView view;
    if (exchange->view(tensor.ptr(), &view) != 0) throw py::error_already_set();
    const int bits = dtype == FS_F64 ? 64 : dtype == FS_F32 ? 32 : 16;
    code_ = dtype == FS_BF16 ? kBfloat : kFloat;
    if (view.elements() != elements || view.code != code_ || view.bits != bits ||
        view.device_type != (device == FS_CPU ? kCpu : kCuda) || (elements && !view.is_dense()))
      throw py::value_error(std::string(where) + ": the tensor has " +
                            std::to_string(view.elements()) + " numbers; a dense one of " +
                            std::to_string(elements) +
                            " in the step's dtype, on its device, is needed");
    bits_ = view.bits, device_type_ = view.device_type, device_id_ = view.device_id;
    shape_.assign(view.shape, view.shape + view.dims);
    strides_.resize(shape_.size());
    int64_t step = 1;
    for (int k = view.dims - 1; k >= 0; step *= shape_[k--])
      strides_[k] = view.strides ? view.strides[k] : step;
  }

  // Where the tensor's numbers lie; 0 where it is anything else.
  Address find(PyObject* tensor) const {
    TensorView view;
    if (!bits_ || Py_TYPE(tensor) != exchange_type) return 0;
    if (exchange->view(tensor, &view) != 0) {
      PyErr_Clear();
      return 0;
    }
    const bool same = view.dims == static_cast<int32_t>(shape_.size()) && view.code == code_ &&
                      view.bits == bits_ && view.lanes == 1 && view.device_type == device_type_ &&
                      view.device_id == device_id_ &&
                      std::equal(shape_.begin(), shape_.end(), view.shape) &&
                      view.lies_as(strides_);
    return same && view.data ? reinterpret_cast<Address>(view.data + view.byte_offset) : 0;
  }

 private:
  // DLPack's numbers.
  static constexpr int32_t kCpu = 1, kCuda = 2;
  static constexpr uint8_t kFloat = 2, kBfloat = 4;

  int32_t device_type_ = 0, device_id_ = 0;
  uint8_t code_ = 0, bits_ = 0;  // bits 0: nothing fits
  std::vector<int64_t> shape_, strides_;
};

}  // namespace fastsample_python
