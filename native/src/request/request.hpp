// A call, checked before anything is computed: texts, pictures, plan, seeds, sizes. Knows nothing of engines.
#pragma once

#include "../base/array.hpp"
#include "../bundle/manifest.hpp"
#include "../latents/given_images.hpp"
#include "../scheduler/plan.hpp"
#include "../scheduler/plan_packs.hpp"
#include "../text/conditioning.hpp"

#include <latentrt/latentrt.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace lrt {

// Texts, scales and seeds have one entry for each image.
struct Request {
    Side positive, negative;
    Encoding encoding;
    std::vector<double> guidance_scales;
    double guidance_rescale = 0, guidance_start = 0, guidance_end = 1;
    bool guided = false;     // whether any image computes the negative prompt, too
    bool distilled = false;  // whether the model takes the guidance scale as an input
    std::vector<std::uint64_t> seeds;
    latentrt_rng rng = LATENTRT_RNG_CPU;
    std::int64_t noise_seed_delta = 0;
    std::int64_t height = 0, width = 0;
    std::shared_ptr<const Plan> plan;
    bool plan_is_given = false;                       // compiled by the caller
    std::optional<std::int64_t> num_inference_steps;  // none with such a plan
    std::string scheduler;                            // its name; "" with such a plan
    std::optional<double> strength;
    Floats noise;  // (images, C, h, w) to start from instead of the seeds'; empty for the seeds'
    std::optional<ImageInput> image;
    Floats time_ids;  // (2, 6) of [negative, positive]
    bool tiling = false, latents_only = false;

    // The computed groups, [negative, positive] or [positive].
    std::vector<Side> sides() const { return guided ? std::vector<Side>{negative, positive} : std::vector{positive}; }
    std::size_t images() const { return seeds.size(); }
    // (calls, groups), weights of the groups' predictions for an image.
    Floats guidance(std::size_t index) const;
};

// A plan that the caller has, and the prediction type of its scheduler's config, "" where that is not known.
struct GivenPlan {
    std::shared_ptr<const Plan> plan;
    std::string prediction_type;
};

// Throws with what was given and what is allowed. `plan` is that of the request, or NULL.
Request request_from(const latentrt_request& given, const GivenPlan* plan, const Manifest& manifest,
                     const PlanPacks& packs);

}  // namespace lrt
