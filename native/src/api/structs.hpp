// Structs of the C header as they were given by programs that were compiled with another version of it.
#pragma once

#include "../base/error.hpp"

#include <latentrt/latentrt.h>

#include <algorithm>
#include <cstring>
#include <string>

namespace lrt {

// Bytes of a struct; more are a mistake of the program.
constexpr std::size_t LARGEST = std::size_t{1} << 16;

// The defaults of each struct.
void set_defaults(latentrt_open_options& options);
void set_defaults(latentrt_request& request);
void set_defaults(latentrt_verification& verification);

// Writes as many bytes of the defaults as the caller's struct has.
template <typename Struct>
void init(Struct* given, std::size_t struct_size) {
    if (given == nullptr) return;
    Struct full{};
    set_defaults(full);
    full.struct_size = struct_size;
    std::memcpy(static_cast<void*>(given), &full, std::min(struct_size, sizeof full));
    if (struct_size > sizeof full && struct_size <= LARGEST)
        std::memset(reinterpret_cast<char*>(given) + sizeof full, 0, struct_size - sizeof full);
}

// The struct with defaults for what it lacks.
template <typename Struct>
Struct completed(const Struct* given, const char* name) {
    Struct full{};
    set_defaults(full);
    if (given == nullptr) return full;
    std::size_t size = 0;
    std::memcpy(&size, given, sizeof size);
    if (size < sizeof size || size > LARGEST)
        throw input_error(std::string(name) + ".struct_size is " + std::to_string(size) + ": fill the struct by " +
                          name + "_init");
    std::memcpy(static_cast<void*>(&full), given, std::min(size, sizeof full));
    const char* bytes = reinterpret_cast<const char*>(given);
    if (size > sizeof full && !std::all_of(bytes + sizeof full, bytes + size, [](char byte) { return byte == 0; }))
        throw input_error(std::string(name) +
                          " holds fields that this version of latentrt does not know: leave them "
                          "at their defaults, or use the version that the program was compiled with");
    return full;
}

}  // namespace lrt
