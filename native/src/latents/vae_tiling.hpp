// The VAE on large pictures, tile by tile, so that memory does not grow with the picture. See
// runtime/latents/vae_tiling.py.
#pragma once

#include "../base/array.hpp"

#include <functional>
#include <utility>
#include <vector>

namespace lrt {

struct Decoded {
    Bytes images;                         // (n, H, W, 3)
    std::vector<std::int32_t> nonfinite;  // (n,), values that were not finite
};

// (n, C, h, w) -> pictures; and (n, H, W, 3) in [-1, 1] -> mean and logvar, (n, C, h, w).
using DecodeTile = std::function<Decoded(const Floats&)>;
using EncodeTile = std::function<std::pair<Floats, Floats>(const Floats&)>;

// `tile` is the side of a tile in latent pixels, `factor` pixels for each latent pixel.
Decoded tiled_decode(const DecodeTile& decode, const Floats& latents, std::int64_t tile, std::int64_t factor);

std::pair<Floats, Floats> tiled_encode(const EncodeTile& encode, const Floats& pixels, std::int64_t tile,
                                       std::int64_t factor);

}  // namespace lrt
