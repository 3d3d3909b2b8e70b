// A bundle on disk: its folder and its manifest, checked.
#pragma once

#include "../base/json.hpp"
#include "manifest.hpp"

#include <map>
#include <string>
#include <vector>

namespace lrt {

constexpr const char* FORMATS[] = {"latentrt.bundle/1", "latentrt.bundle/2"};

struct Bundle {
    Path folder;
    Manifest manifest;
    Json scheduler_config;

    Path file(const std::string& name) const { return folder / name; }
    const Graph& graph(const std::string& name) const { return manifest.graphs.at(name); }
};

// The manifest in a text; throws std::runtime_error with the first fault.
Manifest manifest_from(std::string_view text);

// Reads bundle.json strictly, and checks that every file is there and has its size. Hashes are for `latentrt verify`.
Bundle open_bundle(const Path& folder);

// Symbol of a dimension -> its size: B images, G groups, h and w latent pixels, S tokens, n rows.
using Sizes = std::map<char, std::int64_t>;

// Throws for a symbol without a size, and for sizes beyond 64 bits.
std::vector<std::int64_t> shape_at(const TensorSpec& spec, const Sizes& sizes);

}  // namespace lrt
