// What some models add to the embedding of the timestep: sizes (SDXL), guidance (distilled models).
#pragma once

#include "../base/array.hpp"

#include <latentrt/latentrt.h>

#include <vector>

namespace lrt {

// (2, 6) of [negative, positive]: original size, top left of the crop, target size, each as (height, width). As in
// diffusers, the negative sizes are used if both are given; otherwise they equal the positive ones. Throws for models
// that take no sizes, for half a pair, and for one negative size without the other.
Floats time_ids_from_call(const latentrt_request& request, bool takes_sizes, std::int64_t height, std::int64_t width);

// (width,): sines and cosines of 1000 (guidance_scale - 1) at decreasing frequencies.
std::vector<float> guidance_embedding(double guidance_scale, std::int64_t width);

}  // namespace lrt
