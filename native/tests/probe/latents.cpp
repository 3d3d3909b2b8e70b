// The room `latents`.
#include "answer.hpp"

#include "../../src/latents/given_images.hpp"
#include "../../src/latents/initial.hpp"
#include "../../src/latents/preview.hpp"
#include "../../src/latents/resize.hpp"
#include "../../src/latents/vae_tiling.hpp"

#include <algorithm>
#include <stdexcept>

using namespace lrt;

namespace {

// A plan of which initial_latents reads the draws and the first state.
// `starts`: 0 from noise, 1 from noise and clean latents, 2 from clean latents alone.
Plan plan_of(const std::uint8_t* draws, std::size_t calls, int starts) {
    Plan plan;
    plan.timesteps.resize(calls);
    plan.draws.assign(draws, draws + calls);
    plan.initial.assign(2 * static_cast<std::size_t>(REGISTERS), 0);
    plan.initial[0] = starts == 2 ? 0 : 1;
    plan.initial[1] = starts == 0 ? 0 : 0.5f;
    return plan;
}

Bytes picture_of(const std::uint8_t* pixels, std::int64_t height, std::int64_t width, std::int64_t channels) {
    const Shape shape{height, width, channels};
    return {shape, std::vector<std::uint8_t>(pixels, pixels + elements(shape))};
}

template <typename T>
void copied(const std::vector<T>& values, T* out) {
    std::copy(values.begin(), values.end(), out);
}

latentrt_request request_of(const latentrt_pixels* images, std::size_t images_count, const latentrt_pixels* masks,
                            std::size_t masks_count, const float* latents, std::size_t latents_count) {
    latentrt_request request{};
    request.images = images;
    request.images_count = images_count;
    request.masks = masks;
    request.masks_count = masks_count;
    request.image_latents = latents;
    request.image_latents_count = latents_count;
    return request;
}

using EncodeCallback = void (*)(const float* pixels, const std::int64_t* shape, float* mean, float* logvar);
using DecodeCallback = void (*)(const float* latents, const std::int64_t* shape, std::uint8_t* images,
                                std::int32_t* bad);

std::pair<Floats, Floats> encoded(EncodeCallback callback, const Floats& pixels, std::int64_t channels,
                                  std::int64_t factor, bool samples) {
    const Shape shape{pixels.shape[0], channels, pixels.shape[1] / factor, pixels.shape[2] / factor};
    std::pair<Floats, Floats> moments{Floats(shape), Floats(shape)};
    callback(pixels.values.data(), pixels.shape.data(), moments.first.values.data(), moments.second.values.data());
    if (!samples) moments.second = {};
    return moments;
}

}  // namespace

// Draws `counts[i]` values one after the other.
PROBE void probe_randn(std::uint64_t seed, int rng, const std::size_t* counts, std::size_t calls, float* out) {
    TorchGenerator generator(seed, static_cast<latentrt_rng>(rng));
    for (std::size_t i = 0; i < calls; ++i) {
        copied(generator.randn(counts[i]), out);
        out += counts[i];
    }
}

// `kind`: 0 resized, 1 RGB, 2 grey.
PROBE void probe_bytes(int kind, const std::uint8_t* pixels, std::int64_t height, std::int64_t width,
                       std::int64_t channels, std::int64_t to_height, std::int64_t to_width, std::uint8_t* out,
                       char* error) {
    probe::told(error, [&] {
        const Bytes picture = picture_of(pixels, height, width, channels);
        const Bytes result = kind == 0   ? resized(picture, to_height, to_width)
                             : kind == 1 ? rgb_from(picture)
                                         : grey_from(picture);
        copied(result.values, out);
    });
}

// Height and width, 0 where there are none; and, where these are given, everything that `fitted` returns.
PROBE void probe_given_images(const latentrt_pixels* images, std::size_t images_count, const latentrt_pixels* masks,
                              std::size_t masks_count, const float* latents, std::size_t latents_count,
                              std::int64_t channels, std::int64_t factor, std::size_t prompts, std::size_t per_prompt,
                              std::int64_t* size, float* pixels, float* mask, float* latent_mask, float* masked,
                              float* copied_latents, std::int64_t* rows, char* error) {
    probe::told(error, [&] {
        const latentrt_request request = request_of(images, images_count, masks, masks_count, latents, latents_count);
        const GivenImages given(request, channels);
        if (size[0] == 0) {
            const auto own = given.size(factor);
            size[0] = own ? own->height : 0;
            size[1] = own ? own->width : 0;
            return;
        }
        const auto input = given.fitted({size[0], size[1]}, factor, prompts, per_prompt);
        if (!input) return;
        copied(input->pixels.values, pixels);
        copied(input->latents.values, copied_latents);
        copied(std::vector<std::int64_t>(input->rows.begin(), input->rows.end()), rows);
        if (!input->has_mask()) return;
        copied(input->mask.values, mask);
        copied(input->latent_mask(factor).values, latent_mask);
        copied(input->masked_pixels().values, masked);
    });
}

// Initial latents of image `index`. `sizes` gets how many values each of noise, clean, extra and mask has.
PROBE void probe_initial(const latentrt_pixels* images, std::size_t images_count, const latentrt_pixels* masks,
                         std::size_t masks_count, const float* image_latents, std::size_t latents_count,
                         std::size_t prompts, std::size_t per_prompt, std::size_t index, const std::int64_t* shape,
                         std::int64_t factor, double scaling, int inpaints, int samples, int starts_clean,
                         const std::uint8_t* draws, std::size_t calls, std::uint64_t seed, int rng,
                         const std::uint64_t* between_seed, const float* noise, EncodeCallback encode,
                         std::size_t* sizes, float* out, char* error) {
    probe::told(error, [&] {
        const Plan plan = plan_of(draws, calls, starts_clean);
        const latentrt_request request =
            request_of(images, images_count, masks, masks_count, image_latents, latents_count);
        const auto input =
            GivenImages(request, shape[0]).fitted({shape[1] * factor, shape[2] * factor}, factor, prompts, per_prompt);
        std::vector<KnownImage> known;
        if (input)
            known = known_images(*input, plan, scaling, factor, inpaints != 0, [&](const Floats& pixels) {
                return encoded(encode, pixels, shape[0], factor, samples != 0);
            });
        TorchGenerator generator(seed, static_cast<latentrt_rng>(rng));
        std::optional<TorchGenerator> between;
        if (between_seed != nullptr) between.emplace(*between_seed, static_cast<latentrt_rng>(rng));
        const InitialLatents initial =
            initial_latents(plan, generator, {shape[0], shape[1], shape[2]}, noise,
                            known.empty() ? nullptr : &known.at(index), between ? &*between : nullptr);
        for (const Floats* part : {&initial.noise, &initial.clean, &initial.extra, &initial.mask}) {
            copied(part->values, out);
            *sizes++ = part->values.size();
            out += part->values.size();
        }
    });
}

PROBE void probe_tiled_decode(const float* latents, const std::int64_t* shape, std::int64_t tile, std::int64_t factor,
                              DecodeCallback decode, std::uint8_t* images, std::int32_t* nonfinite) {
    const Shape sides(shape, shape + 4);
    const Floats array(sides, std::vector<float>(latents, latents + elements(sides)));
    const auto one = [&](const Floats& part) {
        Decoded decoded{Bytes(Shape{part.shape[0], part.shape[2] * factor, part.shape[3] * factor, 3}),
                        std::vector<std::int32_t>(static_cast<std::size_t>(part.rows()))};
        decode(part.values.data(), part.shape.data(), decoded.images.values.data(), decoded.nonfinite.data());
        return decoded;
    };
    const Decoded decoded = tiled_decode(one, array, tile, factor);
    copied(decoded.images.values, images);
    copied(decoded.nonfinite, nonfinite);
}

PROBE void probe_tiled_encode(const float* pixels, const std::int64_t* shape, std::int64_t channels, std::int64_t tile,
                              std::int64_t factor, EncodeCallback encode, float* mean, float* logvar) {
    const Shape sides(shape, shape + 4);
    const Floats array(sides, std::vector<float>(pixels, pixels + elements(sides)));
    const auto one = [&](const Floats& part) { return encoded(encode, part, channels, factor, logvar != nullptr); };
    const auto [means, logvars] = tiled_encode(one, array, tile, factor);
    copied(means.values, mean);
    copied(logvars.values, logvar);
}

PROBE void probe_preview(const float* latents, const std::int64_t* shape, const double* matrix, std::int64_t factor,
                         std::uint8_t* out) {
    std::vector<std::array<double, 3>> rows;
    for (std::int64_t i = 0; i <= shape[0]; ++i) rows.push_back({matrix[3 * i], matrix[3 * i + 1], matrix[3 * i + 2]});
    copied(rgb_from_latents(latents, {shape[0], shape[1], shape[2]}, rows, factor).values, out);
}
