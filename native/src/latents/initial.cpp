#include "initial.hpp"

#include "../base/error.hpp"

#include <algorithm>
#include <cmath>

namespace lrt {

namespace {

using Distributions = std::vector<LatentDistribution>;

std::vector<float> row_of(const Floats& array, std::size_t index) {
    return {array.row(index), array.row(index) + array.stride()};
}

Distributions from_moments(const Encode& encode, const Floats& pixels, float scaling) {
    const auto [means, logvars] = encode(pixels);
    const bool samples = !logvars.values.empty();
    if (means.shape.empty() || means.rows() != pixels.rows() ||
        (samples && means.values.size() != logvars.values.size()))
        throw backend_error("the VAE's encoder returned other shapes than those of its pictures");
    Distributions result;
    for (std::size_t i = 0; i < static_cast<std::size_t>(means.rows()); ++i)
        result.push_back({row_of(means, i), samples ? row_of(logvars, i) : std::vector<float>(), scaling});
    return result;
}

Distributions whole_pictures(const ImageInput& image, const Encode& encode, float scaling) {
    if (!image.has_latents()) return from_moments(encode, image.pixels, scaling);
    Distributions result;
    for (std::size_t i = 0; i < static_cast<std::size_t>(image.latents.rows()); ++i)
        result.push_back({row_of(image.latents, i), {}, 1});
    return result;
}

void append(Floats& array, const std::vector<float>& values) {
    array.values.insert(array.values.end(), values.begin(), values.end());
}

}  // namespace

std::vector<float> LatentDistribution::sample(TorchGenerator& generator) const {
    if (logvar.empty()) {
        std::vector<float> scaled = mean;
        for (float& value : scaled) value *= scaling;
        return scaled;
    }
    std::vector<float> values = generator.randn(mean.size());
    for (std::size_t i = 0; i < values.size(); ++i) {
        const float deviation = std::exp(0.5f * std::clamp(logvar[i], -30.0f, 20.0f));
        values[i] = scaling * (mean[i] + deviation * values[i]);
    }
    return values;
}

std::vector<KnownImage> known_images(const ImageInput& image, const Plan& plan, double scaling, std::int64_t factor,
                                     bool inpaints, const Encode& encode) {
    const auto scale = static_cast<float>(scaling);
    Distributions whole, masked;
    if (plan.starts_clean() || !inpaints) whole = whole_pictures(image, encode, scale);
    if (image.has_mask() && inpaints) masked = from_moments(encode, image.masked_pixels(), scale);
    Floats mask;
    if (image.has_mask()) mask = image.latent_mask(factor);

    std::vector<KnownImage> result;
    for (const std::size_t row : image.rows) {
        KnownImage known;
        if (!whole.empty()) known.whole = whole.at(row);
        if (!masked.empty()) known.masked = masked.at(row);
        if (image.has_mask()) known.mask = row_of(mask, row);
        result.push_back(std::move(known));
    }
    return result;
}

// The generator draws, where needed and in this order: a sample of the picture's latents, the initial noise (none for
// plans that go on from unfinished latents), a sample of the masked picture's latents, and one draw for each stochastic
// call.
InitialLatents initial_latents(const Plan& plan, TorchGenerator& generator, const Shape& shape, const float* noise,
                               const KnownImage* known, TorchGenerator* between) {
    const std::size_t count = elements(shape), draws = plan.draw_count();
    InitialLatents result;
    if (known != nullptr && known->whole) result.clean = {shape, known->whole->sample(generator)};

    result.noise.shape = {static_cast<std::int64_t>(1 + draws), shape[0], shape[1], shape[2]};
    result.noise.values.reserve((1 + draws) * count);
    std::vector<float> first(count);  // none for plans that go on from unfinished latents
    if (noise != nullptr) std::copy_n(noise, count, first.begin());
    if (noise == nullptr && plan.starts_noisy()) first = generator.randn(count);
    append(result.noise, first);

    if (known != nullptr && !known->mask.empty()) {
        if (known->masked) {
            result.extra = {{1 + shape[0], shape[1], shape[2]}, known->mask};
            append(result.extra, known->masked->sample(generator));
        } else {
            // diffusers samples the masked picture for other UNets too
            if (known->whole && !known->whole->logvar.empty()) generator.randn(count);
            result.mask = {{1, shape[1], shape[2]}, known->mask};
        }
    }
    TorchGenerator& drawing = between == nullptr ? generator : *between;
    for (std::size_t i = 0; i < draws; ++i) append(result.noise, drawing.randn(count));
    return result;
}

}  // namespace lrt
