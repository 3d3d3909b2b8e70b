// A .safetensors file: the first byte chooses whether the length of its header is the right one.
#include "../../src/bundle/safetensors.hpp"
#include "../../src/base/utf8.hpp"
#include "input.hpp"

namespace {

template <typename T>
void copy(const lrt::Safetensors& file, const std::string& name, const char* dtype) {
    try {
        const lrt::Array<T> array = file.array<T>(name, dtype);
        fuzz::check(array.values.size() == lrt::elements(array.shape));
    } catch (const std::runtime_error& error) {
        fuzz::check(lrt::decoded(error.what()).has_value());
    }
}

// A file whose header ends with the last brace.
std::string framed(std::string_view content) {
    const std::uint64_t header = content.rfind('}') + 1;
    std::string bytes(sizeof header, '\0');
    std::memcpy(bytes.data(), &header, sizeof header);
    return bytes.append(content);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    fuzz::Input input(data, size);
    const bool raw = input.below(2) == 0;
    const std::string bytes = raw ? std::string(input.rest()) : framed(input.rest());
    try {
        const lrt::Safetensors file(bytes);
        std::uint64_t header = 0;
        std::memcpy(&header, bytes.data(), sizeof header);
        const lrt::Json names = lrt::json_from(std::string_view(bytes).substr(sizeof header, header));
        for (const auto& [name, entry] : names.items()) {
            copy<double>(file, name, "F64");
            copy<float>(file, name, "F32");
            copy<std::uint16_t>(file, name, "F16");
            copy<std::uint16_t>(file, name, "BF16");
            copy<std::int64_t>(file, name, "I64");
            copy<std::int32_t>(file, name, "I32");
            copy<std::uint8_t>(file, name, "U8");
            copy<std::uint8_t>(file, name, "BOOL");
        }
        copy<float>(file, "no such tensor", "F32");
    } catch (const std::runtime_error& error) {
        fuzz::check(lrt::decoded(error.what()).has_value());
    }
    return 0;
}
