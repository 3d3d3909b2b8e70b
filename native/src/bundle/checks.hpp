// What a manifest must say besides its types: ranges of numbers, names that exist, graphs as the format has them.
// The same rules as runtime/bundle/checks.py.
#pragma once

#include "../base/json.hpp"
#include "manifest.hpp"

namespace lrt {

// Throws std::runtime_error with the first fault. `json` is the manifest's text, for what drawing does not keep.
void require_sound(const Manifest& manifest, const Json& json);

}  // namespace lrt
