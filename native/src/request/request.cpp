#include "request.hpp"

#include "../base/error.hpp"
#include "../base/limits.hpp"
#include "../base/numbers.hpp"
#include "../base/utf8.hpp"
#include "checks.hpp"
#include "given_texts.hpp"
#include "guidance.hpp"
#include "time_inputs.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace lrt {

namespace {

// Whether a double is at its default.
bool is_default(double value) { return std::isnan(value); }

void check_options(const latentrt_request& given, const Manifest& manifest) {
    const Model& model = manifest.model;
    if (given.num_inference_steps != 0) check_integer("num_inference_steps", given.num_inference_steps);
    check_integer("num_images_per_prompt", given.num_images_per_prompt);
    check_integer("noise_seed_delta", given.noise_seed_delta);
    if (given.height != 0) check_side("height", given.height, model.vae_scale_factor);
    if (given.width != 0) check_side("width", given.width, model.vae_scale_factor);
    std::int64_t layers = model.text_encoders.front().hidden_states;
    for (const TextEncoder& encoder : model.text_encoders) layers = std::min(layers, encoder.hidden_states);
    check_layers("clip_skip", given.clip_skip, layers);
    check_number("guidance_rescale", given.guidance_rescale);
    check_number("guidance_start", given.guidance_start);
    check_number("guidance_end", given.guidance_end);
    check_interval(given.guidance_start, given.guidance_end);
    if (!is_default(given.strength)) check_number("strength", given.strength);
    // A value that an enum has not must not be read as one.
    const auto check_enum = [](const char* name, const void* given_value, int most) {
        int value = 0;
        std::memcpy(&value, given_value, sizeof value);
        if (value < 0 || value > most)
            throw input_error(std::string(name) + "=" + std::to_string(value) + ": expected 0 to " +
                              std::to_string(most));
    };
    check_enum("rng", &given.rng, LATENTRT_RNG_CUDA);
    check_enum("prompt_syntax", &given.prompt_syntax, LATENTRT_SYNTAX_WEB_UI);
    check_enum("long_prompt", &given.long_prompt, LATENTRT_LONG_CHUNK);
    check_enum("output", &given.output, LATENTRT_OUTPUT_LATENTS);
}

// Height, width, and the given pictures at that size.
void take_images(Request& request, const latentrt_request& given, const Manifest& manifest, std::size_t prompts) {
    const std::int64_t factor = manifest.model.vae_scale_factor;
    const GivenImages images(given, manifest.model.latent_channels);
    const std::optional<ImageSize> own = images.size(factor);
    const auto side = [](std::int64_t wanted, std::int64_t of_image, std::int64_t of_bundle) {
        return wanted != 0 ? wanted : of_image != 0 ? of_image : of_bundle;
    };
    request.height = side(given.height, own ? own->height : 0, manifest.defaults.height);
    request.width = side(given.width, own ? own->width : 0, manifest.defaults.width);
    const auto per_prompt = static_cast<std::size_t>(given.num_images_per_prompt);
    const auto count = static_cast<std::int64_t>(prompts * per_prompt);
    if (count * request.height * request.width > limits().MAX_PIXELS)
        throw input_error(std::to_string(count) + " images of " + std::to_string(request.width) + "x" +
                          std::to_string(request.height) + " pixels: expected at most " +
                          grouped(static_cast<std::uint64_t>(limits().MAX_PIXELS)) + " pixels in one call; " +
                          raised_by("MAX_PIXELS"));
    request.image = images.fitted({request.height, request.width}, factor, prompts, per_prompt);
    if (manifest.graphs.at("denoise").takes("extra") && (!request.image || !request.image->has_mask()))
        throw input_error("this model inpaints: pass images and masks");
}

void take_strength(Request& request, const latentrt_request& given, const Defaults& defaults) {
    if (!request.image) {
        if (!is_default(given.strength))
            throw input_error("strength=" + repr(given.strength) +
                              " is how much of an image is drawn anew: pass images, or leave it out");
        return;
    }
    request.strength = !is_default(given.strength) ? given.strength
                       : request.image->has_mask() ? defaults.inpaint_strength
                                                   : defaults.strength;
}

void take_given_plan(Request& request, const latentrt_request& given, const Manifest& manifest, const GivenPlan& plan) {
    if (given.num_inference_steps != 0 || !is_default(given.strength) || given.scheduler.data != nullptr)
        throw input_error("a compiled plan has its steps: leave out scheduler, num_inference_steps and strength");
    const std::string& type = plan.prediction_type;
    if (!type.empty() && type != manifest.model.prediction_type)
        throw scheduler_error("the plan is for a model that predicts " + type + ", and this one predicts " +
                              manifest.model.prediction_type + ": write the plan with --bundle");
    if (plan.plan->starts_clean() && !request.image)
        throw input_error("this plan begins from clean latents: pass images or image_latents");
    request.plan = plan.plan;
    request.plan_is_given = true;
}

void take_plan(Request& request, const latentrt_request& given, const Manifest& manifest, const PlanPacks& packs,
               const GivenPlan* plan) {
    take_strength(request, given, manifest.defaults);
    if (plan != nullptr) return take_given_plan(request, given, manifest, *plan);
    const std::int64_t steps =
        given.num_inference_steps != 0 ? given.num_inference_steps : manifest.defaults.num_inference_steps;
    const std::string name = text_given(given.scheduler, "scheduler");
    const bool masked = request.image && request.image->has_mask();
    std::optional<double> strength = request.strength;
    // As diffusers' inpainting pipelines: nothing of the picture is left to begin from.
    if (masked && strength == 1.0) strength.reset();
    const bool distilled = manifest.graphs.at("time").takes("guidance_embedding");
    request.plan = std::make_shared<const Plan>(packs.find(name, steps, strength, distilled && !masked));
    request.num_inference_steps = steps;
    request.scheduler = name.empty() ? manifest.scheduler_class : name;
}

void take_guidance(Request& request, const latentrt_request& given, const Manifest& manifest, std::size_t images) {
    if (given.guidance_scales_count != 0 && given.guidance_scales == nullptr)
        throw input_error("guidance_scales_count is set: pass guidance_scales");
    const std::size_t count = given.guidance_scales_count;
    if (count > 1 && count != images)
        throw input_error(std::to_string(count) + " guidance_scales for " + std::to_string(images) +
                          " images: pass one, or one for each");
    const bool plus_plus = request.plan->is_plus_plus();
    request.distilled = manifest.graphs.at("time").takes("guidance_embedding");
    if (plus_plus) check_plus_plus(given.guidance_rescale, request.distilled);
    for (std::size_t image = 0; image < images; ++image) {
        double scale = manifest.defaults.guidance_scale / (plus_plus ? PLUS_PLUS : 1);
        if (count != 0) scale = given.guidance_scales[count == 1 ? 0 : image];
        if (count != 0) check_number("guidance_scale", scale);
        request.guidance_scales.push_back(scale);
        request.guided = request.guided || is_guided(scale, plus_plus, request.distilled);
    }
    request.guidance_rescale = given.guidance_rescale;
    request.guidance_start = given.guidance_start;
    request.guidance_end = given.guidance_end;
}

void take_noise(Request& request, const latentrt_request& given, const Manifest& manifest) {
    const std::int64_t factor = manifest.model.vae_scale_factor, images = static_cast<std::int64_t>(request.images());
    const std::int64_t pixels = images * request.height * request.width;
    const auto draws = static_cast<std::int64_t>(request.plan->draw_count());
    if ((1 + draws) * pixels > limits().MAX_NOISE)
        throw input_error("this scheduler draws noise " + std::to_string(draws) + " times for " +
                          grouped(static_cast<std::uint64_t>(pixels)) +
                          " pixels: lower num_inference_steps or the size, or choose a scheduler without noise; " +
                          raised_by("MAX_PIXELS"));
    if (given.latents_count == 0) return;
    if (given.latents == nullptr) throw input_error("latents_count is set: pass latents");
    const Shape shape{images, manifest.model.latent_channels, request.height / factor, request.width / factor};
    if (given.latents_count != elements(shape))
        throw input_error("latents have " + std::to_string(given.latents_count) + " floats; expected " +
                          std::to_string(elements(shape)) + " for these images");
    request.noise = {shape, {given.latents, given.latents + given.latents_count}};
    if (!all_finite(request.noise.values.data(), request.noise.values.size()))
        throw input_error("latents holds NaN or infinity: expected finite numbers");
}

}  // namespace

Request request_from(const latentrt_request& given, const GivenPlan* plan, const Manifest& manifest,
                     const PlanPacks& packs) {
    Request request;
    check_options(given, manifest);
    const std::size_t prompts = given.prompts_count;
    const auto per_prompt = static_cast<std::size_t>(given.num_images_per_prompt);
    std::tie(request.positive, request.negative) = sides_from(given, manifest.model, per_prompt);
    const std::size_t images = prompts * per_prompt;
    request.encoding = {given.prompt_syntax, given.long_prompt == LATENTRT_LONG_CHUNK, given.clip_skip};
    take_images(request, given, manifest, prompts);
    take_plan(request, given, manifest, packs, plan);
    take_guidance(request, given, manifest, images);
    if (given.seeds_count != 0 && given.seeds == nullptr) throw input_error("seeds_count is set: pass seeds");
    request.seeds = checked_seeds(given.seeds, given.seeds_count, images, given.noise_seed_delta);
    request.rng = given.rng;
    request.noise_seed_delta = given.noise_seed_delta;
    take_noise(request, given, manifest);
    request.time_ids =
        time_ids_from_call(given, manifest.graphs.at("time").takes("time_ids"), request.height, request.width);
    request.tiling = given.vae_tiling != 0;
    request.latents_only = given.output == LATENTRT_OUTPUT_LATENTS;
    return request;
}

Floats Request::guidance(std::size_t index) const {
    const auto calls = static_cast<std::int64_t>(plan->calls());
    if (!guided) return {{calls, 1}, std::vector<float>(plan->calls(), 1.0f)};
    if (is_guided(guidance_scales[index], plan->is_plus_plus(), distilled))
        return guidance_weights(guidance_scales[index], *plan, guidance_start, guidance_end);
    // Another image of the call is guided; this one takes the prompt alone.
    Floats weights(Shape{calls, 2});
    for (std::size_t call = 0; call < plan->calls(); ++call) weights.row(call)[1] = 1;
    return weights;
}

}  // namespace lrt
