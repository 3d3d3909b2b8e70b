#include "numbers.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <string_view>

namespace lrt {

namespace {

constexpr std::size_t LONGEST = 64;  // characters; neither form has more than 32

std::string not_finite(double value) { return std::isnan(value) ? "nan" : value < 0 ? "-inf" : "inf"; }

std::string exponent_text(int exponent) {
    const std::string digits = std::to_string(exponent < 0 ? -exponent : exponent);
    return (exponent < 0 ? "e-" : "e+") + (digits.size() < 2 ? "0" + digits : digits);
}

// Digits with the point after the first `whole` of them, which may be too few or less than none.
std::string fixed_point(std::string digits, int whole) {
    if (whole <= 0) return "0." + std::string(static_cast<std::size_t>(-whole), '0') + digits;
    const auto place = static_cast<std::size_t>(whole);
    if (digits.size() <= place) return digits + std::string(place - digits.size(), '0') + ".0";
    return digits.insert(place, ".");
}

}  // namespace

std::string repr(double value) {
    if (!std::isfinite(value)) return not_finite(value);
    char buffer[LONGEST];
    const auto end = std::to_chars(buffer, buffer + LONGEST, std::fabs(value), std::chars_format::scientific).ptr;
    const std::string_view text(buffer, static_cast<std::size_t>(end - buffer));

    // From d.ddde±xx to digits and exponent.
    const std::size_t mark = text.find('e');
    std::string digits(text.substr(0, 1));
    if (mark > 2) digits += text.substr(2, mark - 2);
    int exponent = 0;
    std::from_chars(text.data() + mark + (text[mark + 1] == '+' ? 2 : 1), end, exponent);

    const std::string sign = std::signbit(value) ? "-" : "";
    if (exponent >= -4 && exponent < 16) return sign + fixed_point(std::move(digits), exponent + 1);
    if (digits.size() > 1) digits.insert(1, ".");
    return sign + digits + exponent_text(exponent);
}

std::string general(double value) {
    if (!std::isfinite(value)) return not_finite(value);
    char buffer[LONGEST];
    return {buffer, std::to_chars(buffer, buffer + LONGEST, value, std::chars_format::general, 6).ptr};
}

std::string grouped(std::uint64_t value) {
    std::string text = std::to_string(value);
    for (std::size_t place = text.size(); place > 3;) text.insert(place -= 3, ",");
    return text;
}

bool all_finite(const float* values, std::size_t count) {
    return std::all_of(values, values + count, [](float value) { return std::isfinite(value); });
}

}  // namespace lrt
