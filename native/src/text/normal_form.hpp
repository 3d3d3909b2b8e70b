// CLIP's normalizer: NFC, then runs of white space as one space, then lower case, each as in the library `tokenizers`.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace lrt {

// Code points, and for each the byte of the original text where it comes from.
struct Points {
    std::u32string text;
    std::vector<std::size_t> at;
};

// Of a part of a text.
Points normalized(std::u32string_view text, const std::size_t* at);

}  // namespace lrt
