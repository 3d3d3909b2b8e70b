// The records of bundle.json: which keys each has, and of which types. Every key is known, or the manifest is refused.
#pragma once

#include "../base/json.hpp"

#include <string>

namespace lrt {

// Throws std::runtime_error with the path of the first key that is missing, unknown or mistyped.
void require_manifest(const Json& manifest);

}  // namespace lrt
