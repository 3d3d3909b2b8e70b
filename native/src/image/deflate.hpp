// The format of zlib (RFC 1950 and 1951), to write alone.
#pragma once

#include <cstdint>
#include <vector>

namespace lrt {

std::vector<std::uint8_t> deflated(const std::vector<std::uint8_t>& data);

}  // namespace lrt
