// Previews of latents by a linear map to RGB, without the VAE.
#pragma once

#include "../base/array.hpp"

#include <array>
#include <vector>

namespace lrt {

// (C, h, w) latents of one image to (factor*h, factor*w, 3) bytes, each latent pixel one colour. `latent_rgb` is that
// of the manifest: C + 1 rows, from a latent pixel and 1 to RGB in [0, 1].
Bytes rgb_from_latents(const float* latents, const Shape& shape, const std::vector<std::array<double, 3>>& latent_rgb,
                       std::int64_t factor);

}  // namespace lrt
