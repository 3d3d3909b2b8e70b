// Files that latentrt-draw reads and writes.
#pragma once

#include <latentrt/latentrt.hpp>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

// Pixels of a PNG, JPEG, BMP, GIF, TGA or PNM file.
class PictureFile {
  public:
    explicit PictureFile(const std::string& file);
    latentrt::Picture picture() const { return {pixels_.data(), height_, width_, channels_, 0}; }

  private:
    std::vector<std::uint8_t> pixels_;
    int height_ = 0, width_ = 0, channels_ = 0;
};

std::string text_of_file(const std::string& file);

// Writes a file as a whole or not at all; throws where it cannot be written.
void write_file(const std::string& file, const void* data, std::size_t size);

// A picture (height, width, 3) as a PNG file without text.
std::string png(const std::uint8_t* pixels, int height, int width);

// The array of floats in numpy's format.
std::string npy(const std::vector<std::size_t>& shape, const std::vector<float>& values);
