// Byte pair encoding (arXiv 1508.07909) of words' bytes, with CLIP's mark at the end of each word.
#pragma once

#include "tokenizer_file.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

namespace lrt {

// An id, and the byte of a text where its piece begins.
using Located = std::vector<std::pair<std::int64_t, std::size_t>>;

class BytePairs {
  public:
    // Throws std::runtime_error for names that are not in the vocabulary.
    explicit BytePairs(const TokenizerFile& file);

    // Appends the ids of a word of code points; `at` are the places of these. Time grows as n log n.
    void append(std::u32string_view word, const std::size_t* at, Located& located) const;

  private:
    struct Merge {
        std::uint32_t left, right, rank, result;
    };
    class Word;

    void read_bytes(const TokenizerFile& file);
    void read_merges(const TokenizerFile& file);
    const Merge* merge_of(std::uint32_t left, std::uint32_t right) const;

    // Ids of each byte, inside of a word and at its end.
    std::array<std::uint32_t, 256> inside_{}, last_{};
    std::vector<Merge> merges_;          // sorted by left and right
    std::vector<std::uint32_t> begins_;  // for each left id, where its merges begin
};

}  // namespace lrt
