// Pictures to PNG files with text.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace lrt {

// (height, width, 3) bytes as a PNG file. Each text is an iTXt chunk, of a key in Latin-1 and a value in UTF-8, as
// Pillow writes them.
std::vector<std::uint8_t> png_file(const std::uint8_t* pixels, std::int64_t height, std::int64_t width,
                                   const std::vector<std::pair<std::string, std::string>>& texts);

}  // namespace lrt
