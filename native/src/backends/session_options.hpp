// Options of a session for a device.
#pragma once

#include "session.hpp"

namespace lrt {

Owned<OrtSessionOptions> session_options(const Library& library, const Device& device);

}  // namespace lrt
