#include "safetensors.hpp"

#include "../base/utf8.hpp"

#include <cstdint>
#include <utility>

namespace lrt {

namespace {

constexpr std::pair<const char*, std::size_t> DTYPES[] = {
    {"F64", 8}, {"F32", 4}, {"F16", 2}, {"BF16", 2}, {"I64", 8}, {"I32", 4}, {"U8", 1}, {"BOOL", 1},
};

std::size_t element_bytes(const std::string& dtype) {
    for (const auto& [name, bytes] : DTYPES)
        if (dtype == name) return bytes;
    throw std::runtime_error("it holds a tensor of the type " + shown(dtype, 20));
}

std::uint64_t unsigned_from(const Json& json) {
    if (!json.is_number_unsigned()) throw std::runtime_error("its header holds a size that is no number");
    return json.get<std::uint64_t>();
}

}  // namespace

Safetensors::Safetensors(std::string bytes) : bytes_(std::move(bytes)) {
    std::uint64_t length = 0;
    if (bytes_.size() < sizeof length) throw std::runtime_error("it is cut off");
    std::memcpy(&length, bytes_.data(), sizeof length);  // little-endian, as this machine
    if (length > bytes_.size() - sizeof length) throw std::runtime_error("it is cut off");
    const std::size_t data = sizeof length + length;
    const Json header = json_from(std::string_view(bytes_).substr(sizeof length, length));
    if (!header.is_object()) throw std::runtime_error("its header is no JSON object");
    for (const auto& [name, entry] : header.items())
        if (name != "__metadata__") tensors_.emplace(name, tensor_from(name, entry, data));
}

Safetensors::Tensor Safetensors::tensor_from(const std::string& name, const Json& entry, std::size_t data) const {
    const auto fail = [&] { return std::runtime_error("its tensor " + shown(name, 60) + " is damaged"); };
    for (const char* key : {"dtype", "shape", "data_offsets"})
        if (!entry.is_object() || !entry.contains(key)) throw fail();
    const Json &dtype = entry.at("dtype"), &shape = entry.at("shape"), &offsets = entry.at("data_offsets");
    if (!dtype.is_string() || !shape.is_array() || !offsets.is_array() || offsets.size() != 2 || shape.size() > 16)
        throw fail();
    Tensor tensor{dtype.get<std::string>(), {}, 0};
    const std::size_t available = bytes_.size() - data;
    std::uint64_t size = element_bytes(tensor.dtype);
    for (const Json& side : shape) {
        const std::uint64_t length = unsigned_from(side);
        if (length > available || (length != 0 && size > available / length)) throw fail();
        size *= length;
        tensor.shape.push_back(static_cast<std::int64_t>(length));
    }
    const std::uint64_t from = unsigned_from(offsets[0]), to = unsigned_from(offsets[1]);
    if (from > to || to > available || to - from != size) throw fail();
    tensor.begin = data + from;
    return tensor;
}

const Safetensors::Tensor& Safetensors::of(const std::string& name, const char* dtype) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) throw std::runtime_error("it holds no " + name);
    if (found->second.dtype != dtype)
        throw std::runtime_error("its " + name + " is of the type " + found->second.dtype + ", not " + dtype);
    return found->second;
}

}  // namespace lrt
