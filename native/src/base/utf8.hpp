// UTF-8 to code points and back.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace lrt {

// The code points of a text; nothing where it is not UTF-8 (overlong forms and surrogates are not).
std::optional<std::u32string> decoded(std::string_view text);

std::string encoded(std::u32string_view points);

// The code point that begins at this byte, which is moved behind it; nothing where none does.
std::optional<char32_t> next_point(std::string_view text, std::size_t& at);

void append_utf8(std::string& text, char32_t point);

// Bytes of a code point.
constexpr std::size_t utf8_size(char32_t point) {
    return point < 0x80 ? 1 : point < 0x800 ? 2 : point < 0x10000 ? 3 : 4;
}

// The first code points of a text; a byte that is not UTF-8 counts as one.
std::string_view first_points(std::string_view text, std::size_t most);

// A text for a message: in quotes as Python's repr writes it, and cut after `most` code points. A byte that is not
// UTF-8 is written as \x and two digits.
std::string shown(std::string_view text, std::size_t most = 80);

}  // namespace lrt
