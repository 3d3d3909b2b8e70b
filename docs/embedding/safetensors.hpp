// Tensors of a .safetensors file: eight bytes that tell the length of a JSON header, the header, the data.
#pragma once

#include "json.hpp"

#include <cstdint>
#include <cstring>
#include <vector>

namespace latentrt {

class Safetensors {
  public:
    explicit Safetensors(const Path& file) : file_(file) {
        std::ifstream stream(file, std::ios::binary);
        if (!stream) throw Error(file.string() + " cannot be opened");
        bytes_.assign(std::istreambuf_iterator<char>(stream), {});
        std::uint64_t length = 0;
        if (bytes_.size() < sizeof length) throw Error(file.string() + " is cut off");
        std::memcpy(&length, bytes_.data(), sizeof length);  // little-endian, as this machine
        if (length > bytes_.size() - sizeof length) throw Error(file.string() + " is cut off");
        begin_ = sizeof length + length;
        try {
            header_ = Json::parse(bytes_.begin() + sizeof length, bytes_.begin() + std::ptrdiff_t(begin_));
        } catch (const Json::exception& error) {
            throw Error(file.string() + " cannot be read: " + error.what());
        }
    }

    // The values of a tensor whose elements are `T`s, in C order; `dtype` is that of the format: F32, I64, U8, BOOL.
    template <typename T>
    std::vector<T> values(const std::string& name, const std::string& dtype) const {
        if (!header_.contains(name)) throw Error(file_.string() + " holds no " + name);
        const Json& entry = header_.at(name);
        const auto [from, to] = entry.at("data_offsets").get<std::pair<std::size_t, std::size_t>>();
        if (entry.at("dtype") != dtype || from > to || to > bytes_.size() - begin_ || (to - from) % sizeof(T) != 0)
            throw Error(file_.string() + ": " + name + " is damaged, or not of type " + dtype);
        std::vector<T> result((to - from) / sizeof(T));
        std::memcpy(result.data(), bytes_.data() + begin_ + from, to - from);
        return result;
    }

  private:
    Path file_;
    std::vector<char> bytes_;
    std::size_t begin_ = 0;
    Json header_;
};

}  // namespace latentrt
