#include "unread.hpp"

#include "../base/utf8.hpp"
#include "prompt_tokens.hpp"

#include <cstddef>

namespace lrt {

namespace {

constexpr auto NONE = std::u32string_view::npos;

// <lora:…> and <lyco:…>
std::u32string_view lora_in(std::u32string_view prompt) {
    for (std::size_t at = prompt.find(U'<'); at != NONE; at = prompt.find(U'<', at + 1)) {
        const std::u32string_view name = prompt.substr(at, 6);
        if (name != U"<lora:" && name != U"<lyco:") continue;
        const std::size_t end = prompt.find_first_of(U"<>", at + 6);
        if (end != NONE && prompt[end] == U'>') return prompt.substr(at, end + 1 - at);
    }
    return {};
}

// The first text in square brackets, without more of them inside, that is `wanted`.
template <typename Wanted>
std::u32string_view bracketed_in(std::u32string_view prompt, Wanted wanted) {
    for (std::size_t at = prompt.find(U'['); at != NONE; at = prompt.find(U'[', at + 1)) {
        if (at > 0 && prompt[at - 1] == U'\\') continue;
        const std::size_t end = prompt.find_first_of(U"[]", at + 1);
        if (end == NONE) break;
        if (prompt[end] == U']' && wanted(prompt.substr(at + 1, end - at - 1))) return prompt.substr(at, end + 1 - at);
    }
    return {};
}

// A text, a colon and a number.
bool is_edited(std::u32string_view inside) {
    const auto cut_spaces = [&] {
        while (!inside.empty() && is_space(inside.back())) inside.remove_suffix(1);
    };
    cut_spaces();
    const std::size_t size = inside.size();
    while (!inside.empty() && (inside.back() == U'.' || (inside.back() >= U'0' && inside.back() <= U'9')))
        inside.remove_suffix(1);
    if (inside.size() == size) return false;
    cut_spaces();
    return !inside.empty() && inside.back() == U':';
}

bool is_alternation(std::u32string_view inside) { return inside.find(U'|') != NONE; }

std::u32string_view and_in(std::u32string_view prompt) {
    constexpr std::u32string_view WORD = U"AND";
    for (std::size_t at = prompt.find(WORD); at != NONE; at = prompt.find(WORD, at + 1))
        if (is_word_at(prompt, at, WORD)) return prompt.substr(at, WORD.size());
    return {};
}

}  // namespace

std::string unread(std::u32string_view prompt, latentrt_prompt_syntax syntax) {
    std::string told;
    const auto tell = [&](std::u32string_view found, const char* meaning) {
        if (!found.empty()) told += (told.empty() ? "" : "; ") + encoded(found) + meaning;
    };
    tell(lora_in(prompt), " (a LoRA in web UIs): remove it, and load the file with --lora FILE:WEIGHT or set_loras");
    if (syntax == LATENTRT_SYNTAX_PLAIN) return told;
    tell(bracketed_in(prompt, is_edited),
         " (prompt editing in web UIs): write one prompt for all steps; weights are (word:1.2), or \\[ and \\] for "
         "brackets");
    tell(bracketed_in(prompt, is_alternation), " (alternation in web UIs): name one of the words");
    tell(and_in(prompt),
         " (two prompts at once in web UIs): write a comma, or 'and' if it is a word; BREAK begins a new section");
    return told;
}

}  // namespace lrt
