// The text in a PNG file: what its picture was drawn from, for web UIs and as JSON that can draw it again. See
// runtime/request/metadata.py.
#pragma once

#include "../scheduler/plan.hpp"

#include <latentrt/latentrt.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lrt {

// The prompt and all options of one image, as a call that draws this image alone would give them.
struct Recorded {
    std::string prompt;
    std::optional<std::string> negative_prompt;
    std::optional<std::string> prompt_2, negative_prompt_2;  // where they differ from the first ones

    std::string scheduler;                 // as it was given; the class name of the bundle's own
    const Plan* plan = nullptr;            // instead of a scheduler's name, one that the caller gave
    bool plus_plus = false;                // whether the plan is one of CFG++
    std::int64_t num_inference_steps = 0;  // not with the caller's plan
    std::optional<double> strength;        // where there is a picture; not with the caller's plan

    double guidance_scale = 0, guidance_rescale = 0, guidance_start = 0, guidance_end = 1;
    std::uint64_t seed = 0;
    latentrt_rng rng = LATENTRT_RNG_CPU;
    std::int64_t noise_seed_delta = 0;
    latentrt_prompt_syntax prompt_syntax = LATENTRT_SYNTAX_PLAIN;
    latentrt_long_prompt long_prompt = LATENTRT_LONG_TRUNCATE;
    std::int64_t clip_skip = 0, height = 0, width = 0;
    latentrt_pair original_size{-1, -1}, crops_coords_top_left{-1, -1}, target_size{-1, -1};  // negative: not given
    latentrt_pair negative_original_size{-1, -1}, negative_crops_coords_top_left{-1, -1}, negative_target_size{-1, -1};
    bool vae_tiling = false;

    std::string image, mask, latents;  // see `hash_of`; empty where there are none
};

// What all pictures of a bundle have in common.
struct Source {
    std::string model, model_sha256, version;
};

// Key and text of each chunk, in their order.
using Texts = std::vector<std::pair<std::string, std::string>>;
Texts png_texts(const Recorded& recorded, const Source& source);

// The hash of a picture or of an array of floats that came from memory, 64 hexadecimal digits.
std::string hash_of(const latentrt_pixels& picture);
std::string hash_of(const float* values, std::size_t count);

}  // namespace lrt
