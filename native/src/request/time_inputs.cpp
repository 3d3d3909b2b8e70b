#include "time_inputs.hpp"

#include "../base/error.hpp"
#include "checks.hpp"

#include <array>
#include <cmath>
#include <string>

namespace lrt {

namespace {

struct Given {
    const char* name;
    latentrt_pair pair;
};

bool given(latentrt_pair pair) { return pair.first >= 0 || pair.second >= 0; }

latentrt_pair either(latentrt_pair pair, latentrt_pair otherwise) { return given(pair) ? pair : otherwise; }

void append(Floats& ids, latentrt_pair pair) {
    ids.values.push_back(static_cast<float>(pair.first));
    ids.values.push_back(static_cast<float>(pair.second));
}

void check_pairs(const latentrt_request& request, bool takes_sizes) {
    const std::array<Given, 6> pairs{{
        {"original_size", request.original_size},
        {"crops_coords_top_left", request.crops_coords_top_left},
        {"target_size", request.target_size},
        {"negative_original_size", request.negative_original_size},
        {"negative_crops_coords_top_left", request.negative_crops_coords_top_left},
        {"negative_target_size", request.negative_target_size},
    }};
    std::string names;
    for (const Given& each : pairs) {
        if (!given(each.pair)) continue;
        check_pair(each.name, each.pair);
        names += (names.empty() ? "" : ", ") + std::string(each.name);
    }
    if (!names.empty() && !takes_sizes)
        throw input_error(names + ": this model takes no sizes, only SDXL does; leave them out");
}

}  // namespace

Floats time_ids_from_call(const latentrt_request& request, bool takes_sizes, std::int64_t height, std::int64_t width) {
    check_pairs(request, takes_sizes);
    const latentrt_pair here{static_cast<std::int32_t>(height), static_cast<std::int32_t>(width)}, corner{0, 0};
    const std::array<latentrt_pair, 3> positive{either(request.original_size, here),
                                                either(request.crops_coords_top_left, corner),
                                                either(request.target_size, here)};
    std::array<latentrt_pair, 3> negative = positive;
    const bool original = given(request.negative_original_size), target = given(request.negative_target_size);
    if (original != target) throw input_error("negative_original_size and negative_target_size go together: pass both");
    if (original)
        negative = {request.negative_original_size, either(request.negative_crops_coords_top_left, corner),
                    request.negative_target_size};
    Floats ids;
    ids.shape = {2, 6};
    for (const auto& sizes : {negative, positive})
        for (const latentrt_pair& pair : sizes) append(ids, pair);
    return ids;
}

// diffusers' get_guidance_scale_embedding, in float32 as there: the angles are large, and their rounding shows.
std::vector<float> guidance_embedding(double guidance_scale, std::int64_t width) {
    const auto half = static_cast<std::size_t>(width / 2);
    const float step = std::log(10000.0f) / (static_cast<float>(half) - 1.0f);
    const float scale = static_cast<float>(guidance_scale - 1) * 1000.0f;
    std::vector<float> result(static_cast<std::size_t>(width));
    for (std::size_t i = 0; i < half; ++i) {
        const float angle = scale * std::exp(static_cast<float>(i) * -step);
        result[i] = std::sin(angle);
        result[half + i] = std::cos(angle);
    }
    return result;
}

}  // namespace lrt
