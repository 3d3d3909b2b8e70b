// What the loop starts from, for one image: noise and the latents of given pictures, drawn in the order of diffusers'
// pipelines. See runtime/latents/initial.py. What is missing has no values.
#pragma once

#include "../base/array.hpp"
#include "../scheduler/plan.hpp"
#include "given_images.hpp"
#include "noise.hpp"

#include <functional>
#include <optional>
#include <utility>
#include <vector>

namespace lrt {

// (n, H, W, 3) in [-1, 1] -> mean and logvar, (n, C, h, w); logvar is empty for a VAE that does not sample.
using Encode = std::function<std::pair<Floats, Floats>(const Floats&)>;

// Latents of one picture as the VAE gives them. Without `logvar` they are fixed and take no draw.
struct LatentDistribution {
    std::vector<float> mean, logvar;
    float scaling = 1;

    // One sample, scaled as the UNet expects it.
    std::vector<float> sample(TorchGenerator& generator) const;
};

// The picture that one image starts from.
struct KnownImage {
    std::optional<LatentDistribution> whole;   // none where the loop does not read it
    std::optional<LatentDistribution> masked;  // with the part to draw anew in grey, for UNets that inpaint
    std::vector<float> mask;                   // (1, h, w), 1 where the picture is drawn anew
};

// The picture of each image to draw; every picture is encoded once. `scaling` is the VAE's factor, `factor` pixels for
// each latent pixel. A UNet that inpaints takes the mask and the masked picture; others get known latents blended in.
std::vector<KnownImage> known_images(const ImageInput& image, const Plan& plan, double scaling, std::int64_t factor,
                                     bool inpaints, const Encode& encode);

struct InitialLatents {
    Floats noise;  // (1 + draws, C, h, w): the initial noise, then one draw for each stochastic call
    Floats clean;  // (C, h, w), latents of the given picture
    Floats extra;  // (1 + C, h, w), for UNets that inpaint: the mask and the latents of the masked picture
    Floats mask;   // (1, h, w), for other UNets
};

// `shape` is (C, h, w). `noise`, where it is not NULL, is used instead of the generator's initial noise; `between`
// draws for the stochastic calls instead.
InitialLatents initial_latents(const Plan& plan, TorchGenerator& generator, const Shape& shape,
                               const float* noise = nullptr, const KnownImage* known = nullptr,
                               TorchGenerator* between = nullptr);

}  // namespace lrt
