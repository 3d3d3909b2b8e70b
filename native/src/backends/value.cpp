#include "value.hpp"

#include "../base/error.hpp"

namespace lrt {

namespace {

struct Type {
    const char* name;
    ONNXTensorElementDataType type;
    std::size_t bytes;
};

constexpr Type TYPES[] = {
    {"float64", ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE, 8},  {"float32", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, 4},
    {"float16", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, 2}, {"bfloat16", ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16, 2},
    {"int64", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, 8},     {"int32", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32, 4},
    {"uint8", ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, 1},
};

}  // namespace

ONNXTensorElementDataType element_type(const std::string& dtype) {
    for (const Type& type : TYPES)
        if (dtype == type.name) return type.type;
    throw bundle_error("tensors of the type " + dtype + " are not in the format");
}

std::size_t bytes_of(ONNXTensorElementDataType type) {
    for (const Type& known : TYPES)
        if (type == known.type) return known.bytes;
    throw backend_error("ONNX Runtime returned a tensor of a type that is not in the format");
}

Value::Value(const Library& library, OrtValue* value) : library_(&library), value_(value, library.api().ReleaseValue) {}

Value Value::over(const Library& library, const void* data, const Shape& shape, ONNXTensorElementDataType type) {
    OrtValue* value = nullptr;
    library.check(library.api().CreateTensorWithDataAsOrtValue(library.host(), const_cast<void*>(data),
                                                               elements(shape) * bytes_of(type), shape.data(),
                                                               shape.size(), type, &value),
                  "a tensor");
    return {library, value};
}

Shape Value::shape() const {
    OrtTensorTypeAndShapeInfo* info = nullptr;
    const OrtApi& api = library_->api();
    library_->check(api.GetTensorTypeAndShape(get(), &info), "a tensor");
    const Owned<OrtTensorTypeAndShapeInfo> owner(info, api.ReleaseTensorTypeAndShapeInfo);
    std::size_t count = 0;
    library_->check(api.GetDimensionsCount(info, &count), "a tensor");
    Shape shape(count);
    library_->check(api.GetDimensions(info, shape.data(), count), "a tensor");
    return shape;
}

ONNXTensorElementDataType Value::type() const {
    OrtTensorTypeAndShapeInfo* info = nullptr;
    const OrtApi& api = library_->api();
    library_->check(api.GetTensorTypeAndShape(get(), &info), "a tensor");
    const Owned<OrtTensorTypeAndShapeInfo> owner(info, api.ReleaseTensorTypeAndShapeInfo);
    ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    library_->check(api.GetTensorElementType(info, &type), "a tensor");
    return type;
}

void* Value::data() const {
    void* data = nullptr;
    library_->check(library_->api().GetTensorMutableData(get(), &data), "a tensor");
    return data;
}

}  // namespace lrt
