#include "png.hpp"

#include "../base/error.hpp"
#include "deflate.hpp"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <limits>
#include <string_view>

namespace lrt {

namespace {

constexpr std::size_t CHANNELS = 3;

using Buffer = std::vector<std::uint8_t>;

std::uint32_t crc_of(const std::uint8_t* bytes, std::size_t size) {
    std::array<std::uint32_t, 256> table{};
    for (std::uint32_t i = 0; i < table.size(); ++i) {
        std::uint32_t word = i;
        for (int bit = 0; bit < 8; ++bit) word = word >> 1 ^ ((word & 1) != 0 ? 0xEDB88320u : 0u);
        table[i] = word;
    }
    std::uint32_t crc = 0xFFFFFFFFu;
    for (std::size_t i = 0; i < size; ++i) crc = table[(crc ^ bytes[i]) & 0xFF] ^ crc >> 8;
    return ~crc;
}

void append(Buffer& file, std::uint32_t word) {
    for (int shift = 24; shift >= 0; shift -= 8) file.push_back(static_cast<std::uint8_t>(word >> shift));
}

void append_chunk(Buffer& file, std::string_view type, const std::uint8_t* data, std::size_t size) {
    if (size > std::numeric_limits<std::int32_t>::max())
        throw input_error("a PNG file holds at most 2 GB in one chunk");
    append(file, static_cast<std::uint32_t>(size));
    const std::size_t begin = file.size();
    file.insert(file.end(), type.begin(), type.end());
    file.insert(file.end(), data, data + size);
    append(file, crc_of(file.data() + begin, file.size() - begin));
}

void append_header(Buffer& file, std::int64_t height, std::int64_t width) {
    Buffer data;
    append(data, static_cast<std::uint32_t>(width));
    append(data, static_cast<std::uint32_t>(height));
    data.insert(data.end(), {8, 2, 0, 0, 0});  // 8 bits, RGB, deflate, filters, no interlace
    append_chunk(file, "IHDR", data.data(), data.size());
}

void append_text(Buffer& file, const std::string& key, const std::string& value) {
    const std::string data = key + std::string(5, '\0') + value;  // not compressed, no language, no translated key
    append_chunk(file, "iTXt", reinterpret_cast<const std::uint8_t*>(data.data()), data.size());
}

int paeth(int left, int up, int corner) {
    const int guess = left + up - corner;
    const int by_left = std::abs(guess - left), by_up = std::abs(guess - up), by_corner = std::abs(guess - corner);
    return by_left <= by_up && by_left <= by_corner ? left : by_up <= by_corner ? up : corner;
}

// What a filter of PNG expects a byte to be, from those beside, above, and beside that.
template <int FILTER>
int expected(int left, int up, int corner) {
    if constexpr (FILTER == 1) return left;
    if constexpr (FILTER == 2) return up;
    if constexpr (FILTER == 3) return (left + up) / 2;
    if constexpr (FILTER == 4) return paeth(left, up, corner);
    return 0;
}

// A row with its filter before it, and how large the differences are together.
struct Row {
    Buffer bytes;
    std::size_t sum = std::numeric_limits<std::size_t>::max();
};

// `row` and `above` have a pixel of zeros before them.
template <int FILTER>
void keep_better(const Buffer& row, const Buffer& above, Row& tried, Row& best) {
    tried.bytes[0] = FILTER;
    tried.sum = 0;
    for (std::size_t i = CHANNELS; i < row.size(); ++i) {
        const int guess = expected<FILTER>(row[i - CHANNELS], above[i], above[i - CHANNELS]);
        const auto difference = static_cast<std::int8_t>(row[i] - guess);
        tried.bytes[i - CHANNELS + 1] = static_cast<std::uint8_t>(difference);
        tried.sum += static_cast<std::size_t>(std::abs(int{difference}));
    }
    if (tried.sum < best.sum) std::swap(tried, best);
}

// Each row with its filter before it: the one that leaves the least, as libpng chooses.
Buffer filtered(const std::uint8_t* pixels, std::size_t height, std::size_t width) {
    const std::size_t size = width * CHANNELS;
    Buffer result, row(CHANNELS + size), above(CHANNELS + size);
    result.reserve(height * (size + 1));
    Row tried{Buffer(size + 1)}, best{Buffer(size + 1)};
    for (std::size_t y = 0; y < height; ++y) {
        std::copy_n(pixels + y * size, size, row.begin() + CHANNELS);
        best.sum = std::numeric_limits<std::size_t>::max();
        keep_better<0>(row, above, tried, best);
        keep_better<1>(row, above, tried, best);
        keep_better<2>(row, above, tried, best);
        keep_better<3>(row, above, tried, best);
        keep_better<4>(row, above, tried, best);
        result.insert(result.end(), best.bytes.begin(), best.bytes.end());
        std::swap(row, above);
    }
    return result;
}

void append_pixels(Buffer& file, const std::uint8_t* pixels, std::int64_t height, std::int64_t width) {
    const Buffer rows = filtered(pixels, static_cast<std::size_t>(height), static_cast<std::size_t>(width));
    const Buffer data = deflated(rows);
    append_chunk(file, "IDAT", data.data(), data.size());
}

}  // namespace

std::vector<std::uint8_t> png_file(const std::uint8_t* pixels, std::int64_t height, std::int64_t width,
                                   const std::vector<std::pair<std::string, std::string>>& texts) {
    Buffer file{0x89, 'P', 'N', 'G', '\r', '\n', 0x1A, '\n'};
    append_header(file, height, width);
    for (const auto& [key, value] : texts) append_text(file, key, value);
    append_pixels(file, pixels, height, width);
    append_chunk(file, "IEND", nullptr, 0);
    return file;
}

}  // namespace lrt
