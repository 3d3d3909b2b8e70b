// The room `request`, and what it is made of.
#include "answer.hpp"

#include "../../src/base/numbers.hpp"
#include "../../src/base/sha256.hpp"
#include "../../src/request/checks.hpp"
#include "../../src/request/guidance.hpp"
#include "../../src/request/json_text.hpp"
#include "../../src/request/metadata.hpp"
#include "../../src/request/option_table.hpp"
#include "../../src/request/time_inputs.hpp"

#include <algorithm>

using namespace lrt;

namespace {

std::optional<std::string> text_or_none(const char* text) {
    return text == nullptr ? std::nullopt : std::optional<std::string>(text);
}

}  // namespace

// Texts of many numbers, a line each. `kind`: 0 repr, 1 general.
PROBE std::size_t probe_numbers(int kind, const double* values, std::size_t count, char* out, std::size_t size) {
    std::string text;
    for (std::size_t i = 0; i < count; ++i) text += (kind == 0 ? repr(values[i]) : general(values[i])) + "\n";
    return probe::put(text, out, size);
}

PROBE std::size_t probe_grouped(std::uint64_t value, char* out, std::size_t size) {
    return probe::put(grouped(value), out, size);
}

// In pieces of `piece` bytes.
PROBE void probe_sha256(const std::uint8_t* data, std::size_t size, std::size_t piece, char* out) {
    Sha256 hash;
    for (std::size_t i = 0; i < size; i += piece) hash.add(data + i, std::min(piece, size - i));
    probe::put(hash.hex(), out, 65);
}

PROBE std::size_t probe_json_text(const char* text, std::size_t length, char* out, std::size_t size) {
    return probe::put(json_text(std::string_view(text, length)), out, size);
}

// Sampler and schedule type, a line each.
PROBE std::size_t probe_to_web_ui(const char* name, char* out, std::size_t size) {
    const WebUiSampler known = to_web_ui(name);
    return probe::put(std::string(known.sampler) + "\n" + std::string(known.schedule_type), out, size);
}

// Name, kind, default, JSON and label of each option, a line each, with tabs between.
PROBE std::size_t probe_option_table(char* out, std::size_t size) {
    std::string text;
    for (const Option& option : OptionTable())
        text += std::string(option.name) + "\t" + std::to_string(static_cast<int>(option.kind)) + "\t" +
                std::string(option.fixed) + "\t" + (option.json ? "1" : "0") + "\t" + std::string(option.web_ui) + "\n";
    return probe::put(text, out, size);
}

PROBE void probe_check_integer(const char* name, std::int64_t value, char* error) {
    probe::told(error, [&] { check_integer(name, value); });
}

PROBE void probe_check_number(const char* name, double value, char* error) {
    probe::told(error, [&] { check_number(name, value); });
}

PROBE void probe_check_choice(const char* name, const char* value, char* error) {
    probe::told(error, [&] { check_choice(name, value); });
}

PROBE void probe_check_side(const char* name, std::int64_t value, std::int64_t factor, char* error) {
    probe::told(error, [&] { check_side(name, value, factor); });
}

PROBE void probe_check_layers(const char* name, std::int64_t value, std::int64_t layers, char* error) {
    probe::told(error, [&] { check_layers(name, value, layers); });
}

PROBE void probe_check_pair(const char* name, std::int32_t first, std::int32_t second, char* error) {
    probe::told(error, [&] { check_pair(name, {first, second}); });
}

PROBE void probe_check_text(const char* name, const char* text, std::size_t length, char* error) {
    probe::told(error, [&] { check_text(name, std::string_view(text, length)); });
}

PROBE void probe_seeds(const std::uint64_t* seeds, std::size_t count, std::size_t images, std::int64_t delta,
                       std::uint64_t* out, char* error) {
    probe::told(error, [&] {
        const auto checked = checked_seeds(seeds, count, images, delta);
        std::copy(checked.begin(), checked.end(), out);
    });
}

PROBE int probe_is_guided(double scale, int plus_plus, int distilled) {
    return is_guided(scale, plus_plus != 0, distilled != 0) ? 1 : 0;
}

// `guidance` is that of the plan, (calls, 2).
PROBE void probe_guidance(double scale, const float* guidance, std::size_t calls, double start, double end, float* out,
                          char* error) {
    probe::told(error, [&] {
        Plan plan;
        plan.timesteps.resize(calls);
        plan.guidance.assign(guidance, guidance + 2 * calls);
        check_interval(start, end);
        const Floats weights = guidance_weights(scale, plan, start, end);
        std::copy(weights.values.begin(), weights.values.end(), out);
    });
}

PROBE void probe_check_plus_plus(double rescale, int distilled, char* error) {
    probe::told(error, [&] { check_plus_plus(rescale, distilled != 0); });
}

// The six pairs in the order of the header.
PROBE void probe_time_ids(const latentrt_pair* pairs, int takes_sizes, std::int64_t height, std::int64_t width,
                          float* out, char* error) {
    probe::told(error, [&] {
        latentrt_request request{};
        request.original_size = pairs[0];
        request.crops_coords_top_left = pairs[1];
        request.target_size = pairs[2];
        request.negative_original_size = pairs[3];
        request.negative_crops_coords_top_left = pairs[4];
        request.negative_target_size = pairs[5];
        const Floats ids = time_ids_from_call(request, takes_sizes != 0, height, width);
        std::copy(ids.values.begin(), ids.values.end(), out);
    });
}

PROBE void probe_guidance_embedding(double scale, std::int64_t width, float* out) {
    const std::vector<float> values = guidance_embedding(scale, width);
    std::copy(values.begin(), values.end(), out);
}

// What a picture was drawn from; the order is that of the test's ctypes.Structure.
struct ProbeRecorded {
    const char *prompt, *negative_prompt, *prompt_2, *negative_prompt_2, *scheduler;
    std::int64_t num_inference_steps;
    double strength;  // negative: none
    double guidance_scale, guidance_rescale, guidance_start, guidance_end;
    std::uint64_t seed;
    std::int32_t rng, prompt_syntax, long_prompt, plus_plus, vae_tiling;
    std::int64_t noise_seed_delta, clip_skip, height, width;
    latentrt_pair pairs[6];
    const char *image, *mask, *latents, *model, *model_sha256, *version;
    // The caller's plan: timesteps, coefficients, initial, noise_levels, blend and guidance; no calls without one.
    std::size_t calls;
    const float* arrays[6];
    const std::uint8_t* draws;
};

namespace {

Plan plan_of(const ProbeRecorded& given) {
    const std::size_t calls = given.calls, rows = static_cast<std::size_t>(REGISTERS);
    const auto taken = [](const float* values, std::size_t count) { return std::vector(values, values + count); };
    Plan plan;
    plan.timesteps = taken(given.arrays[0], calls);
    plan.coefficients = taken(given.arrays[1], calls * rows * (rows + 2));
    plan.initial = taken(given.arrays[2], rows * 2);
    plan.noise_levels = taken(given.arrays[3], (calls + 1) * 2);
    plan.blend = taken(given.arrays[4], calls * 2);
    plan.guidance = taken(given.arrays[5], calls * 2);
    plan.draws.assign(given.draws, given.draws + calls);
    return plan;
}

Recorded recorded_of(const ProbeRecorded& given) {
    Recorded recorded;
    recorded.prompt = given.prompt;
    recorded.negative_prompt = text_or_none(given.negative_prompt);
    recorded.prompt_2 = text_or_none(given.prompt_2);
    recorded.negative_prompt_2 = text_or_none(given.negative_prompt_2);
    recorded.scheduler = given.scheduler;
    recorded.num_inference_steps = given.num_inference_steps;
    if (given.strength >= 0) recorded.strength = given.strength;
    recorded.guidance_scale = given.guidance_scale;
    recorded.guidance_rescale = given.guidance_rescale;
    recorded.guidance_start = given.guidance_start;
    recorded.guidance_end = given.guidance_end;
    recorded.seed = given.seed;
    recorded.rng = static_cast<latentrt_rng>(given.rng);
    recorded.prompt_syntax = static_cast<latentrt_prompt_syntax>(given.prompt_syntax);
    recorded.long_prompt = static_cast<latentrt_long_prompt>(given.long_prompt);
    recorded.plus_plus = given.plus_plus != 0;
    recorded.vae_tiling = given.vae_tiling != 0;
    recorded.noise_seed_delta = given.noise_seed_delta;
    recorded.clip_skip = given.clip_skip;
    recorded.height = given.height;
    recorded.width = given.width;
    recorded.original_size = given.pairs[0];
    recorded.crops_coords_top_left = given.pairs[1];
    recorded.target_size = given.pairs[2];
    recorded.negative_original_size = given.pairs[3];
    recorded.negative_crops_coords_top_left = given.pairs[4];
    recorded.negative_target_size = given.pairs[5];
    recorded.image = given.image;
    recorded.mask = given.mask;
    recorded.latents = given.latents;
    return recorded;
}

}  // namespace

// The texts `parameters` and `latentrt`, each with a NUL behind it; returns their length together.
PROBE std::size_t probe_png_texts(const ProbeRecorded* given, char* out, std::size_t size) {
    Recorded recorded = recorded_of(*given);
    Plan plan;
    if (given->calls != 0) {
        plan = plan_of(*given);
        recorded.plan = &plan;
    }
    std::string text;
    for (const auto& [key, value] : png_texts(recorded, {given->model, given->model_sha256, given->version}))
        text += key + "=" + value + '\0';
    return probe::put(text, out, size);
}

PROBE void probe_hash_of_picture(const latentrt_pixels* picture, char* out) { probe::put(hash_of(*picture), out, 65); }

PROBE void probe_hash_of_floats(const float* values, std::size_t count, char* out) {
    probe::put(hash_of(values, count), out, 65);
}
