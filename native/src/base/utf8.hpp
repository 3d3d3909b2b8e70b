// UTF-8 to code points and back.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace lrt {

// The code points of a text; nothing where it is not UTF-8 (overlong forms and surrogates are not).
std::optional<std::u32string> decoded(std::string_view text);

std::string encoded(std::u32string_view points);

// A text for a message: in quotes as Python's repr writes it, and cut after `most` code points.
std::string shown(std::string_view text, std::size_t most = 80);

}  // namespace lrt
