// Graphs as the format has them: their tensors, and what one hands to the next.
#pragma once

#include "manifest.hpp"

namespace lrt {

// Throws std::runtime_error with the first fault.
void check_graphs(const Manifest& manifest);

}  // namespace lrt
