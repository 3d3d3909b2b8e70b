// Prefix codes as deflate has them.
#pragma once

#include <cstdint>
#include <vector>

namespace lrt {

struct PrefixCode {
    std::vector<std::uint8_t> lengths;  // bits of each symbol; 0 where it does not occur
    std::vector<std::uint16_t> bits;    // in the order in which they are written, the first one lowest
};

// The best code, or nearly, whose words have at most `longest` bits. Symbols that do not occur have no word, but there
// are always at least two words, as some readers want.
PrefixCode prefix_code(std::vector<std::uint32_t> counts, int longest);

}  // namespace lrt
