// JSON files, with errors that name the file. Knows nothing of bundles.
#pragma once

#define JSON_DIAGNOSTICS 1  // errors tell the path inside of the file
#include <nlohmann/json.hpp>

#include <filesystem>
#include <fstream>
#include <set>
#include <stdexcept>
#include <string>

namespace latentrt {

using Json = nlohmann::json;
using Path = std::filesystem::path;

// What a caller can mend: a wrong file, a wrong option. Its text goes to the user as it is.
struct Error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Calls `read(json)` and gives its result; whatever is wrong with the JSON becomes an Error that names the file.
template <typename Read>
auto with_json(const Path& file, Read read) {
    std::ifstream stream(file, std::ios::binary);
    if (!stream) throw Error(file.string() + " cannot be opened");
    try {
        return read(Json::parse(stream));
    } catch (const Json::exception& error) {
        throw Error(file.string() + " cannot be read: " + error.what());
    }
}

// A reader that skips keys it does not know draws wrong pictures from newer files.
inline void refuse_unknown_keys(const Json& object, const std::string& where, const std::set<std::string>& known) {
    for (const auto& [key, value] : object.items())
        if (known.count(key) == 0) throw Error(where + " has the unknown key \"" + key + "\"");
}

}  // namespace latentrt
