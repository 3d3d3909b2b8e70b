// Finds the words that are added to a vocabulary: the special ones, and those of textual inversions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace lrt {

class AddedTokens {
  public:
    struct Found {
        std::size_t first, last;  // the range of a text
        std::uint32_t id;
    };

    void add(std::u32string word, std::uint32_t id);
    // Throws std::runtime_error for equal words: of these, the library `tokenizers` finds one by chance.
    void finish();
    // The first word from a place on, and of those there the longest.
    std::optional<Found> find(std::u32string_view text, std::size_t from) const;

  private:
    struct Word {
        std::u32string text;
        std::uint32_t id;
    };
    std::optional<Found> longest_at(std::u32string_view text, std::size_t at) const;

    std::vector<Word> words_;  // sorted
};

}  // namespace lrt
