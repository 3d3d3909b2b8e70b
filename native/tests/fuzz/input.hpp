// A fuzz target's input, taken apart from its front, and files of the folder data/.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>

namespace fuzz {

inline void check(bool holds) {
    if (!holds) std::abort();
}

class Input {
  public:
    Input(const std::uint8_t* data, std::size_t size) : rest_(reinterpret_cast<const char*>(data), size) {}

    // Zero where nothing is left.
    template <typename T>
    T number() {
        T value{};
        const std::string_view taken = bytes(sizeof value);
        std::memcpy(&value, taken.data(), taken.size());
        return value;
    }
    // One of 0 to count - 1.
    std::size_t below(std::size_t count) { return number<std::uint8_t>() % count; }

    std::string_view bytes(std::size_t most) {
        const std::string_view taken = rest_.substr(0, most);
        rest_.remove_prefix(taken.size());
        return taken;
    }
    // Behind its length in a byte.
    std::string text() { return std::string(bytes(number<std::uint8_t>())); }
    std::string_view rest() const { return rest_; }

  private:
    std::string_view rest_;
};

inline std::string data_file(const std::string& name) {
    std::ifstream file(FUZZ_DATA "/" + name, std::ios::binary);
    check(file.good());
    return {std::istreambuf_iterator<char>(file), {}};
}

inline const char* const MANIFESTS[] = {"small.json", "sdxl.json", "inpaint.json", "distilled.json"};

}  // namespace fuzz
