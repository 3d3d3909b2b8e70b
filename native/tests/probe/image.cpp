// The room `image`.
#include "answer.hpp"

#include "../../src/image/huffman.hpp"
#include "../../src/image/png.hpp"

#include <algorithm>

// A PNG file with texts, key and value by turns; returns its length, and writes it where it fits.
PROBE std::size_t probe_png(const std::uint8_t* pixels, std::int64_t height, std::int64_t width,
                            const char* const* texts, std::size_t texts_count, std::uint8_t* out, std::size_t size) {
    std::vector<std::pair<std::string, std::string>> pairs;
    for (std::size_t i = 0; i < texts_count; i += 2) pairs.emplace_back(texts[i], texts[i + 1]);
    const std::vector<std::uint8_t> file = lrt::png_file(pixels, height, width, pairs);
    if (file.size() <= size) std::copy(file.begin(), file.end(), out);
    return file.size();
}

// Bits of each symbol's word.
PROBE void probe_prefix_lengths(const std::uint32_t* counts, std::size_t count, int longest, std::uint8_t* out) {
    const lrt::PrefixCode code = lrt::prefix_code({counts, counts + count}, longest);
    std::copy(code.lengths.begin(), code.lengths.end(), out);
}
