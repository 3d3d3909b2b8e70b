// The noise that torch.Generator("cpu") draws for a seed. Knows nothing of latents.
#pragma once

#include "json.hpp"

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

namespace latentrt {

class TorchGenerator {
  public:
    // PyTorch's CPU generator uses the low 32 bits of a seed.
    explicit TorchGenerator(std::uint64_t seed) : bits_(static_cast<std::uint32_t>(seed)) {}

    // The next `count` unit normal values, as torch.randn(count, generator=...) draws them in float32.
    std::vector<float> randn(std::size_t count) {
        // Fewer values come one by one from another formula; no picture is that small.
        if (count < BLOCK) throw Error(std::to_string(count) + " values of noise: at least 16");
        std::vector<float> values(count);
        for (float& value : values) value = uniform();
        for (std::size_t i = 0; i + BLOCK <= count; i += BLOCK) box_muller(&values[i]);
        if (count % BLOCK != 0) {  // the last 16 values are drawn anew as a block
            float* tail = &values[count - BLOCK];
            for (std::size_t i = 0; i < BLOCK; ++i) tail[i] = uniform();
            box_muller(tail);
        }
        return values;
    }

  private:
    static constexpr std::size_t BLOCK = 16;

    // Uniform in [0, 1): the low 24 bits of each 32, as many as float32 holds.
    float uniform() { return static_cast<float>(bits_() & 0xFFFFFFu) * 0x1p-24f; }

    // Uniform values to normal ones: the first 8 of a block set the radius, the last 8 the angle. Float32 throughout,
    // as PyTorch: double would be nearer to the truth and farther from PyTorch.
    static void box_muller(float* block) {
        for (std::size_t i = 0; i < BLOCK / 2; ++i) {
            const float radius = std::sqrt(-2.0f * std::log(1.0f - block[i]));
            const float angle = 6.283185307179586f * block[i + BLOCK / 2];
            block[i] = radius * std::cos(angle);
            block[i + BLOCK / 2] = radius * std::sin(angle);
        }
    }

    std::mt19937 bits_;
};

}  // namespace latentrt
