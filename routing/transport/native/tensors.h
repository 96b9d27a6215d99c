// Reads Python tensors and makes Python records at the price of a few pointers. With eight expert processes on a few
// cores every exchange finds cold caches, so each interpreted instruction on this path costs several times its usual
// price.
#pragma once

#include <nanobind/nanobind.h>

#include <initializer_list>
#include <stdexcept>
#include <string>
#include <vector>

namespace step35 {

namespace nb = nanobind;

// The parts that we use of DLPack 1.3, as laid down in its dlpack.h ("C exchange API").
struct TensorType {
    uint8_t code, bits;
    uint16_t lanes;
    bool operator==(const TensorType&) const = default;
};
constexpr TensorType kInt64{0, 64, 1}, kInt32{0, 32, 1}, kFloat32{2, 32, 1};

struct RawTensor {
    void* data;
    int32_t device_type, device_id;
    int32_t num_dims;
    TensorType type;
    int64_t* shape;
    int64_t* strides;
    uint64_t byte_offset;
};

struct ExchangeApi {
    uint32_t major, minor;
    ExchangeApi* previous;
    void* unused[3];
    int (*read_tensor)(void* py_object, RawTensor* out);
    void* current_work_stream;
};

// Reads tensors in place, without taking a reference.
class TensorReader {
  public:
    static constexpr int64_t kVector = -1;

    // api: the capsule `torch.Tensor.__dlpack_c_exchange_api__`.
    explicit TensorReader(const nb::capsule& api)
        : api_(static_cast<const ExchangeApi*>(api.data("dlpack_exchange_api"))) {
        if (api_->major != 1) throw std::runtime_error("this torch speaks another DLPack than version 1");
    }

    // The address of a contiguous CPU tensor of this type with `width` numbers per row, and in `num_rows` its length.
    // Throws std::invalid_argument naming what is wrong with it.
    const std::byte* read(nb::handle tensor, const char* name, TensorType type, int64_t width,
                          int64_t* num_rows) const {
        const RawTensor raw = raw_of(tensor);
        const auto require = [&](bool holds, const char* what) {
            if (!holds) throw std::invalid_argument(std::string(name) + " must be " + what);
        };
        require(raw.device_type == 1, "in host memory");
        require(raw.type == type, "of the agreed dtype");
        const bool is_shaped = width == kVector ? raw.num_dims == 1 : raw.num_dims == 2 && raw.shape[1] == width;
        require(is_shaped, width == kVector ? "a vector" : "a matrix as wide as the agreed hidden size");
        require(is_dense(raw), "contiguous");
        *num_rows = raw.shape[0];
        return static_cast<const std::byte*>(raw.data) + raw.byte_offset;
    }

    bool is_contiguous(nb::handle tensor) const { return is_dense(raw_of(tensor)); }
    TensorType type_of(nb::handle tensor) const { return raw_of(tensor).type; }

  private:
    RawTensor raw_of(nb::handle tensor) const {
        RawTensor raw;
        if (api_->read_tensor(tensor.ptr(), &raw) != 0) throw nb::python_error();
        return raw;
    }

    static bool is_dense(const RawTensor& raw) {
        int64_t expected = 1;
        for (int32_t dim = raw.num_dims - 1; dim >= 0; --dim) {
            if (raw.shape[dim] == 0) return true;
            if (raw.shape[dim] != 1 && raw.strides != nullptr && raw.strides[dim] != expected) return false;
            expected *= raw.shape[dim];
        }
        return true;
    }

    const ExchangeApi* api_;
};

// Makes instances of a frozen dataclass as its own __init__ does, by object.__setattr__, without interpreting it.
class RecordMaker {
  public:
    RecordMaker(nb::object type, std::initializer_list<const char*> fields) : type_(std::move(type)) {
        for (const char* field : fields) names_.push_back(nb::steal<nb::str>(PyUnicode_InternFromString(field)));
    }

    nb::object make(std::initializer_list<nb::handle> values) const {
        auto* type = reinterpret_cast<PyTypeObject*>(type_.ptr());
        nb::object record = nb::steal(type->tp_alloc(type, 0));
        if (!record.is_valid()) throw nb::python_error();
        size_t idx = 0;
        for (const nb::handle value : values)
            if (PyObject_GenericSetAttr(record.ptr(), names_[idx++].ptr(), value.ptr()) < 0) throw nb::python_error();
        return record;
    }

  private:
    nb::object type_;
    std::vector<nb::str> names_;
};

}  // namespace step35
