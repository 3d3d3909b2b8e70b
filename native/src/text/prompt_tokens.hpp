// The signs of the web UI's prompt syntax, found as the regular expressions in runtime/text/prompt.py find them.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace lrt {

// \( and so on, a weight with its colon and bracket such as :1.2), BREAK, or a bracket.
struct PromptToken {
    enum class Kind { escaped, weight, end, bracket };
    Kind kind;
    std::size_t first, last;
    std::string weight;          // its number, as it is written
    char32_t character = U'\0';  // the one that is escaped, or the bracket
};

// The first one from a place on.
std::optional<PromptToken> next_token(std::u32string_view prompt, std::size_t from);

// Whether a word, in capitals, begins here and is not part of a longer one.
bool is_word_at(std::u32string_view text, std::size_t at, std::u32string_view word);

bool is_space(char32_t point);

// The place behind white space.
std::size_t behind_spaces(std::u32string_view text, std::size_t at);

}  // namespace lrt
