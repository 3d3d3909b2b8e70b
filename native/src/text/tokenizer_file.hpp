// tokenizer.json, as far as it is that of a CLIP tokenizer. Whatever else it says is refused.
#pragma once

#include "vocabulary.hpp"

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lrt {

// A word that is found before anything else is done with a text; where it is `normalized`, in the normalized text.
struct AddedToken {
    std::string content;
    std::uint32_t id = 0;
    bool normalized = false;
};

struct TokenizerFile {
    Vocabulary vocabulary;
    // Pairs of names, those that are merged first come first.
    std::vector<std::pair<std::string, std::string>> merges;
    std::string unknown;  // stands for bytes that are not in the vocabulary
    std::vector<AddedToken> added;
    bool special_words = false;  // see words_of
};

// Throws std::runtime_error with what differs.
TokenizerFile tokenizer_file_from(std::string_view json);

}  // namespace lrt
