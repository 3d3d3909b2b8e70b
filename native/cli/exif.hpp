// How a camera was held: the EXIF orientation of JPEG files.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

// 1 to 8 as EXIF numbers them; 1, upright, where a file does not say.
int orientation_of(const std::string& jpeg);

struct Pixels {
    std::vector<std::uint8_t> bytes;  // (height, width, channels)
    int height = 0, width = 0, channels = 0;
};

// The picture upright.
Pixels upright(Pixels picture, int orientation);
