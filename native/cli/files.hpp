// Files that latentrt-draw reads and writes.
#pragma once

#include "exif.hpp"

#include <latentrt/latentrt.hpp>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

// Pixels of a PNG, JPEG, BMP, GIF, TGA or PNM file, upright.
class PictureFile {
  public:
    explicit PictureFile(const std::string& file);
    latentrt::Picture picture() const {
        return {pixels_.bytes.data(), pixels_.height, pixels_.width, pixels_.channels, 0};
    }

  private:
    Pixels pixels_;
};

// Makes the folder of a file; throws where no file can be written there. To be called before the work.
void require_place(const std::string& file);

std::string text_of_file(const std::string& file);

// Writes a file as a whole or not at all; throws where it cannot be written.
void write_file(const std::string& file, const void* data, std::size_t size);

// A picture (height, width, 3) as a PNG file without text.
std::string png(const std::uint8_t* pixels, int height, int width);

// The array of floats in numpy's format.
std::string npy(const std::vector<std::size_t>& shape, const std::vector<float>& values);
