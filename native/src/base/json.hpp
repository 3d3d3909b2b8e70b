// JSON from files and from memory, with errors that name where it came from.
#pragma once

#include <nlohmann/json.hpp>

#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>

namespace lrt {

using Json = nlohmann::json;
using Path = std::filesystem::path;

// A regular file as a whole. Throws std::runtime_error with the reason, without the file's name, where it cannot be
// read or has more than `most` bytes.
std::string bytes_of(const Path& file, std::size_t most);

// Throws std::runtime_error for what is not JSON, for keys that occur twice, and for text that is not UTF-8.
Json json_from(std::string_view text);

}  // namespace lrt
