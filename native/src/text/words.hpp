// CLIP's pre-tokenizer: the words of a normalized text, which are tokenized one by one.
#pragma once

#include <cstddef>
#include <string_view>
#include <utility>
#include <vector>

namespace lrt {

// First and last + 1 of each word. What is between them, white space, is left out. Newer tokenizers also know their own
// special words here, where `special_words` is set.
std::vector<std::pair<std::size_t, std::size_t>> words_of(std::u32string_view text, bool special_words);

}  // namespace lrt
