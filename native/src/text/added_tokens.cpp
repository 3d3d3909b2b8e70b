#include "added_tokens.hpp"

#include "../base/utf8.hpp"

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace lrt {

void AddedTokens::add(std::u32string word, std::uint32_t id) { words_.push_back({std::move(word), id}); }

void AddedTokens::finish() {
    std::sort(words_.begin(), words_.end(), [](const Word& a, const Word& b) { return a.text < b.text; });
    const auto same = [](const Word& a, const Word& b) { return a.text == b.text; };
    const auto twice = std::adjacent_find(words_.begin(), words_.end(), same);
    if (twice != words_.end())
        throw std::runtime_error("added_tokens: two of them are " + shown(encoded(twice->text), 40) +
                                 " in their normal form and lower case");
}

std::optional<AddedTokens::Found> AddedTokens::longest_at(std::u32string_view text, std::size_t at) const {
    std::optional<Found> found;
    // Words that begin as the text does, as a range that becomes smaller with every character.
    auto first = words_.begin(), last = words_.end();
    for (std::size_t size = 0; at + size < text.size() && first != last; ++size) {
        const char32_t next = text[at + size];
        first = std::lower_bound(first, last, next, [size](const Word& word, char32_t point) {
            return word.text.size() <= size || word.text[size] < point;
        });
        last = std::upper_bound(first, last, next,
                                [size](char32_t point, const Word& word) { return point < word.text[size]; });
        // The shortest one comes first.
        if (first != last && first->text.size() == size + 1) found = Found{at, at + size + 1, first->id};
    }
    return found;
}

std::optional<AddedTokens::Found> AddedTokens::find(std::u32string_view text, std::size_t from) const {
    for (std::size_t at = from; at < text.size(); ++at)
        if (const std::optional<Found> found = longest_at(text, at)) return found;
    return std::nullopt;
}

}  // namespace lrt
