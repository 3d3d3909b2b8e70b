// What a manifest says of weights and of compiled engines, which this library does not use: the same rules as in
// Python, so that both open the same bundles.
#pragma once

#include "../base/json.hpp"
#include "manifest.hpp"

namespace lrt {

// Throws std::runtime_error with the first fault.
void check_unused(const Manifest& manifest, const Json& json);

}  // namespace lrt
