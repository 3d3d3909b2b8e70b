#include "prompt_tokens.hpp"

#include "../base/python_tables.hpp"

namespace lrt {

namespace {

constexpr std::u32string_view BRACKETS = U"()[]";

bool is_digit(char32_t point) { return point >= U'0' && point <= U'9'; }

bool is_word_character(char32_t point) { return contains(PYTHON_WORDS, point); }

std::size_t behind_digits(std::u32string_view text, std::size_t at) {
    while (at < text.size() && is_digit(text[at])) ++at;
    return at;
}

// The end of a number such as +1, .5 or 1., or `at` where there is none.
std::size_t behind_number(std::u32string_view text, std::size_t at) {
    std::size_t first = at;
    if (first < text.size() && (text[first] == U'+' || text[first] == U'-')) ++first;
    const std::size_t point = behind_digits(text, first);
    if (point == text.size() || text[point] != U'.') return point == first ? at : point;
    const std::size_t end = behind_digits(text, point + 1);
    return point == first && end == point + 1 ? at : end;
}

std::optional<PromptToken> weight_at(std::u32string_view prompt, std::size_t at) {
    const std::size_t first = behind_spaces(prompt, at + 1), last = behind_number(prompt, first);
    const std::size_t end = behind_spaces(prompt, last);
    if (last == first || end == prompt.size() || prompt[end] != U')') return std::nullopt;
    std::string number;
    for (const char32_t point : prompt.substr(first, last - first)) number += static_cast<char>(point);
    return PromptToken{PromptToken::Kind::weight, at, end + 1, number};
}

std::optional<PromptToken> token_at(std::u32string_view prompt, std::size_t at) {
    const char32_t point = prompt[at];
    if (BRACKETS.find(point) != std::u32string_view::npos)
        return PromptToken{PromptToken::Kind::bracket, at, at + 1, {}, point};
    if (point == U'\\' && at + 1 < prompt.size()) {
        const char32_t next = prompt[at + 1];
        if (next == U'\\' || BRACKETS.find(next) != std::u32string_view::npos)
            return PromptToken{PromptToken::Kind::escaped, at, at + 2, {}, next};
    }
    if (point == U':') return weight_at(prompt, at);
    if (is_word_at(prompt, at, U"BREAK")) return PromptToken{PromptToken::Kind::end, at, at + 5, {}};
    return std::nullopt;
}

}  // namespace

bool is_space(char32_t point) { return contains(PYTHON_SPACES, point); }

std::size_t behind_spaces(std::u32string_view text, std::size_t at) {
    while (at < text.size() && is_space(text[at])) ++at;
    return at;
}

bool is_word_at(std::u32string_view text, std::size_t at, std::u32string_view word) {
    const std::size_t end = at + word.size();
    return text.substr(at, word.size()) == word && (at == 0 || !is_word_character(text[at - 1])) &&
           (end == text.size() || !is_word_character(text[end]));
}

std::optional<PromptToken> next_token(std::u32string_view prompt, std::size_t from) {
    for (std::size_t at = from; at < prompt.size(); ++at)
        if (std::optional<PromptToken> token = token_at(prompt, at)) return token;
    return std::nullopt;
}

}  // namespace lrt
