// Numbers as Python prints them, whatever the locale.
#pragma once

#include <cstdint>
#include <string>

namespace lrt {

// repr(value): the fewest digits that give the value back.
std::string repr(double value);

// format(value, "g"): six significant digits.
std::string general(double value);

// format(value, ","): 67108864 as 67,108,864.
std::string grouped(std::uint64_t value);

}  // namespace lrt
