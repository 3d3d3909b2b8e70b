// Tensors that ONNX Runtime reads and writes.
#pragma once

#include "../base/array.hpp"
#include "library.hpp"

#include <string>

namespace lrt {

// By the names of the bundle format, such as float16; throws for others.
ONNXTensorElementDataType element_type(const std::string& dtype);
std::size_t bytes_of(ONNXTensorElementDataType type);

class Value {
  public:
    Value() = default;
    Value(const Library& library, OrtValue* value);

    // A tensor over memory of the caller, who keeps it while the value is used. ONNX Runtime takes inputs as mutable,
    // and does not change them.
    static Value over(const Library& library, const void* data, const Shape& shape, ONNXTensorElementDataType type);
    static Value over(const Library& library, const Floats& array) {
        return over(library, array.values.data(), array.shape, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
    }
    static Value over(const Library& library, const Ids& array) {
        return over(library, array.values.data(), array.shape, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64);
    }

    OrtValue* get() const { return value_.get(); }
    Shape shape() const;
    ONNXTensorElementDataType type() const;
    // Of values in host memory.
    void* data() const;
    std::size_t bytes() const { return elements(shape()) * bytes_of(type()); }

    template <typename T>
    Array<T> copied() const {
        const T* from = static_cast<const T*>(data());
        return {shape(), std::vector<T>(from, from + elements(shape()))};
    }

  private:
    const Library* library_ = nullptr;
    Owned<OrtValue> value_;
};

}  // namespace lrt
