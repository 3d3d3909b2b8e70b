// Numbers as Python prints them, whatever the locale.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace lrt {

// repr(value): the fewest digits that give the value back.
std::string repr(double value);

// format(value, "g"): six significant digits.
std::string general(double value);

// format(value, ","): 67108864 as 67,108,864.
std::string grouped(std::uint64_t value);

// Whether none is NaN or infinite.
bool all_finite(const float* values, std::size_t count);

}  // namespace lrt
