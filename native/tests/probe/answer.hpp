// Answers of the probe: a value through a pointer of the caller, or the text of an error.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <exception>
#include <string>

#define PROBE extern "C" __attribute__((visibility("default")))

namespace probe {

// Puts as much of a text as fits into `out`, ends it with NUL, and returns its whole length.
inline std::size_t put(const std::string& text, char* out, std::size_t size) {
    const std::size_t part = std::min(text.size(), size - 1);
    std::memcpy(out, text.data(), part);
    out[part] = '\0';
    return text.size();
}

// Runs `work`; the text of what it throws, or nothing, goes to `error`, of 1000 bytes.
template <typename Work>
void told(char* error, Work work) {
    put("", error, 1000);
    try {
        work();
    } catch (const std::exception& thrown) {
        put(thrown.what(), error, 1000);
    }
}

}  // namespace probe
