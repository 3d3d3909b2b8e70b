#include "exif.hpp"

#include <algorithm>
#include <cstddef>
#include <utility>

namespace {

// A number of some bytes; 0 where the file ends before.
unsigned number_at(const std::string& bytes, std::size_t at, std::size_t count, bool little) {
    if (at > bytes.size() || count > bytes.size() - at) return 0;
    unsigned value = 0;
    for (std::size_t i = 0; i < count; ++i)
        value = value << 8 | static_cast<unsigned char>(bytes[little ? at + count - 1 - i : at + i]);
    return value;
}

// The tag 0x0112 of the first directory of a TIFF header.
int orientation_in(const std::string& tiff) {
    const bool little = tiff.rfind("II", 0) == 0;
    if (!little && tiff.rfind("MM", 0) != 0) return 1;
    const std::size_t directory = number_at(tiff, 4, 4, little);
    const unsigned entries = number_at(tiff, directory, 2, little);
    for (unsigned i = 0; i < entries; ++i) {
        const std::size_t entry = directory + 2 + std::size_t{12} * i;
        if (number_at(tiff, entry, 2, little) != 0x0112) continue;
        const unsigned value = number_at(tiff, entry + 8, 2, little);
        return value >= 1 && value <= 8 ? static_cast<int>(value) : 1;
    }
    return 1;
}

}  // namespace

int orientation_of(const std::string& jpeg) {
    // Segments of a JPEG file: FF, a marker, and the length of what follows, up to the scan.
    for (std::size_t at = 2; number_at(jpeg, at, 1, false) == 0xFF;) {
        const unsigned marker = number_at(jpeg, at + 1, 1, false);
        const std::size_t length = number_at(jpeg, at + 2, 2, false);
        if (marker == 0xDA || length < 2) break;
        const std::string segment = jpeg.substr(at + 4, length - 2);
        if (marker == 0xE1 && segment.compare(0, 6, std::string("Exif\0\0", 6)) == 0)
            return orientation_in(segment.substr(6));
        at += 2 + length;
    }
    return 1;
}

Pixels upright(Pixels picture, int orientation) {
    if (orientation == 1) return picture;
    const bool sideways = orientation >= 5;
    Pixels turned{std::vector<std::uint8_t>(picture.bytes.size()), sideways ? picture.width : picture.height,
                  sideways ? picture.height : picture.width, picture.channels};
    for (int y = 0; y < turned.height; ++y)
        for (int x = 0; x < turned.width; ++x) {
            // Where the pixel was: sides swapped, then rows and columns counted from the other end.
            int row = sideways ? x : y, column = sideways ? y : x;
            if (orientation == 3 || orientation == 4 || orientation == 7 || orientation == 8)
                (sideways ? column : row) = (sideways ? picture.width : picture.height) - 1 - (sideways ? column : row);
            if (orientation == 2 || orientation == 3 || orientation == 6 || orientation == 7)
                (sideways ? row : column) = (sideways ? picture.height : picture.width) - 1 - (sideways ? row : column);
            const auto from = static_cast<std::size_t>((row * picture.width + column) * picture.channels);
            const auto to = static_cast<std::size_t>((y * turned.width + x) * picture.channels);
            std::copy_n(&picture.bytes[from], picture.channels, &turned.bytes[to]);
        }
    return turned;
}
