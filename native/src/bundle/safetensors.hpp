// Tensors of a .safetensors file: eight bytes with the length of a JSON header, the header, the data.
#pragma once

#include "../base/array.hpp"
#include "../base/json.hpp"

#include <cstring>
#include <map>
#include <stdexcept>
#include <string>

namespace lrt {

class Safetensors {
  public:
    // `bytes` is the content of a file; throws std::runtime_error where it is damaged.
    explicit Safetensors(std::string bytes);

    bool has(const std::string& name) const { return tensors_.count(name) != 0; }

    // A tensor whose elements are `T`s; `dtype` is that of the format: F32, I64, U8, BOOL. Throws std::runtime_error
    // where there is none of this name and type.
    template <typename T>
    Array<T> array(const std::string& name, const char* dtype) const {
        const Tensor& tensor = of(name, dtype);
        Array<T> result(tensor.shape);
        if (!result.values.empty())
            std::memcpy(result.values.data(), bytes_.data() + tensor.begin, result.values.size() * sizeof(T));
        return result;
    }

  private:
    struct Tensor {
        std::string dtype;
        Shape shape;
        std::size_t begin = 0;
    };
    Tensor tensor_from(const std::string& name, const Json& entry, std::size_t data) const;
    const Tensor& of(const std::string& name, const char* dtype) const;

    std::string bytes_;
    std::map<std::string, Tensor> tensors_;
};

}  // namespace lrt
