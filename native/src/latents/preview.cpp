#include "preview.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace lrt {

namespace {

// Halves to even; NaN becomes black, as it does in Python.
std::uint8_t level(float value) {
    return std::isnan(value) ? std::uint8_t{0}
                             : static_cast<std::uint8_t>(std::nearbyint(std::clamp(value, 0.0f, 1.0f) * 255.0f));
}

}  // namespace

Bytes rgb_from_latents(const float* latents, const Shape& shape, const std::vector<std::array<double, 3>>& latent_rgb,
                       std::int64_t factor) {
    const auto channels = static_cast<std::size_t>(shape[0]), pixels = static_cast<std::size_t>(shape[1] * shape[2]);
    const auto width = static_cast<std::size_t>(shape[2]), grown = static_cast<std::size_t>(factor);
    Bytes image({shape[1] * factor, shape[2] * factor, 3});
    for (std::size_t i = 0; i < pixels; ++i) {
        std::uint8_t* first = image.row(i / width * grown) + i % width * grown * 3;
        for (std::size_t colour = 0; colour < 3; ++colour) {
            float sum = 0;
            for (std::size_t c = 0; c < channels; ++c)
                sum += latents[c * pixels + i] * static_cast<float>(latent_rgb.at(c)[colour]);
            first[colour] = level(sum + static_cast<float>(latent_rgb.at(channels)[colour]));
        }
        for (std::size_t x = 1; x < grown; ++x) std::memcpy(first + 3 * x, first, 3);
    }
    // The first row of each latent row is complete; the others are the same.
    for (std::size_t y = 0; y < static_cast<std::size_t>(image.rows()); ++y)
        if (y % grown != 0) std::memcpy(image.row(y), image.row(y - y % grown), image.stride());
    return image;
}

}  // namespace lrt
