#include "words.hpp"

#include "unicode_tables.hpp"

namespace lrt {

namespace {

enum class Kind { space, letter, number, other };

Kind kind_of(char32_t point) {
    if (point < 0x80) {
        if ((point >= U'a' && point <= U'z') || (point >= U'A' && point <= U'Z')) return Kind::letter;
        if (point >= U'0' && point <= U'9') return Kind::number;
        return point == U' ' || (point >= 9 && point <= 13) ? Kind::space : Kind::other;
    }
    if (contains(LETTERS, point)) return Kind::letter;
    if (contains(NUMBERS, point)) return Kind::number;
    return contains(SPACES, point) ? Kind::space : Kind::other;
}

bool begins_with(std::u32string_view text, std::u32string_view word) { return text.substr(0, word.size()) == word; }

// Size of 's, 't, 're and so on at the beginning of a text, or 0.
std::size_t contraction(std::u32string_view text) {
    if (text.empty() || text[0] != U'\'') return 0;
    for (const std::u32string_view ending : {U"'s", U"'t", U"'re", U"'ve", U"'m", U"'ll", U"'d"})
        if (begins_with(text, ending)) return ending.size();
    return 0;
}

// Size of the word inside of a special word that the text begins with, or 0.
std::size_t special_word(std::u32string_view text) {
    if (begins_with(text, U"<|startoftext|>")) return 11;
    return begins_with(text, U"<|endoftext|>") ? 9 : 0;
}

std::size_t word_end(std::u32string_view text, std::size_t at) {
    if (const std::size_t size = contraction(text.substr(at))) return at + size;
    const Kind kind = kind_of(text[at]);
    std::size_t end = at + 1;
    if (kind != Kind::number)
        while (end < text.size() && kind_of(text[end]) == kind) ++end;
    return end;
}

}  // namespace

std::vector<std::pair<std::size_t, std::size_t>> words_of(std::u32string_view text, bool special_words) {
    std::vector<std::pair<std::size_t, std::size_t>> words;
    for (std::size_t at = 0; at < text.size();) {
        const std::size_t inner = special_words ? special_word(text.substr(at)) : 0;
        if (inner != 0) {
            // The byte-level pre-tokenizer that comes next splits it into signs and a word again.
            words.insert(words.end(), {{at, at + 2}, {at + 2, at + 2 + inner}, {at + 2 + inner, at + 4 + inner}});
            at += inner + 4;
            continue;
        }
        const std::size_t end = word_end(text, at);
        if (kind_of(text[at]) != Kind::space) words.emplace_back(at, end);
        at = end;
    }
    return words;
}

}  // namespace lrt
