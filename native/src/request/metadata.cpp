#include "metadata.hpp"

#include "../base/numbers.hpp"
#include "../base/sha256.hpp"
#include "guidance.hpp"
#include "json_text.hpp"
#include "option_table.hpp"

#include <map>
#include <variant>

namespace lrt {

namespace {

constexpr const char* FORMAT = "latentrt.picture/1";

struct Hash {
    std::string sha256;
};

// Kinds of values, as JSON holds them.
using Value = std::variant<std::int64_t, std::uint64_t, double, bool, std::string, latentrt_pair, Hash, const Plan*>;
using Values = std::map<std::string_view, Value>;

void put(Values& values, std::string_view name, latentrt_pair pair) {
    if (pair.first >= 0 && pair.second >= 0) values[name] = pair;
}

void put(Values& values, std::string_view name, const std::optional<std::string>& text) {
    if (text) values[name] = *text;
}

void put(Values& values, std::string_view name, const std::string& sha256) {
    if (!sha256.empty()) values[name] = Hash{sha256};
}

void put_sizes(Values& values, const Recorded& recorded) {
    put(values, "original_size", recorded.original_size);
    put(values, "crops_coords_top_left", recorded.crops_coords_top_left);
    put(values, "target_size", recorded.target_size);
    put(values, "negative_original_size", recorded.negative_original_size);
    put(values, "negative_crops_coords_top_left", recorded.negative_crops_coords_top_left);
    put(values, "negative_target_size", recorded.negative_target_size);
}

void put_scheduler(Values& values, const Recorded& recorded) {
    if (recorded.plan != nullptr) {
        values["scheduler"] = recorded.plan;
        return;
    }
    values["scheduler"] = recorded.scheduler;
    values["num_inference_steps"] = recorded.num_inference_steps;
    if (recorded.strength) values["strength"] = *recorded.strength;
}

// What is off, or has no place in this library, is missing.
Values values_of(const Recorded& recorded) {
    Values values;
    put(values, "negative_prompt", recorded.negative_prompt);
    put(values, "prompt_2", recorded.prompt_2);
    put(values, "negative_prompt_2", recorded.negative_prompt_2);
    put(values, "image", recorded.image);
    put(values, "mask_image", recorded.mask);
    put(values, "latents", recorded.latents);
    put_scheduler(values, recorded);
    put_sizes(values, recorded);
    values["guidance_scale"] = recorded.guidance_scale;
    values["guidance_rescale"] = recorded.guidance_rescale;
    values["guidance_start"] = recorded.guidance_start;
    values["guidance_end"] = recorded.guidance_end;
    values["seed"] = recorded.seed;
    values["rng"] = std::string(recorded.rng == LATENTRT_RNG_CUDA ? "cuda" : "cpu");
    values["noise_seed_delta"] = recorded.noise_seed_delta;
    values["prompt_syntax"] = std::string(recorded.prompt_syntax == LATENTRT_SYNTAX_WEB_UI ? "web-ui" : "plain");
    values["long_prompt"] = std::string(recorded.long_prompt == LATENTRT_LONG_CHUNK ? "chunk" : "truncate");
    values["clip_skip"] = recorded.clip_skip;
    values["height"] = recorded.height;
    values["width"] = recorded.width;
    values["vae_tiling"] = recorded.vae_tiling;
    return values;
}

struct AsJson {
    std::string operator()(std::int64_t value) const { return std::to_string(value); }
    std::string operator()(std::uint64_t value) const { return std::to_string(value); }
    std::string operator()(double value) const { return repr(value); }
    std::string operator()(bool value) const { return value ? "true" : "false"; }
    std::string operator()(const std::string& value) const { return json_text(value); }
    std::string operator()(const Hash& value) const { return "{\"sha256\": " + json_text(value.sha256) + "}"; }
    std::string operator()(const Plan* value) const { return json_text(*value); }
    std::string operator()(latentrt_pair value) const {
        return "[" + std::to_string(value.first) + ", " + std::to_string(value.second) + "]";
    }
};

std::string document(const Recorded& recorded, const Values& values, const Source& source) {
    std::string text = "{\"format\": " + json_text(FORMAT) + ", \"prompt\": " + json_text(recorded.prompt);
    for (const Option& option : OptionTable())
        if (const auto found = values.find(option.name); found != values.end() && option.json)
            text += ", " + json_text(option.name) + ": " + std::visit(AsJson(), found->second);
    return text + ", \"loras\": [], \"model\": " + json_text(source.model) +
           ", \"model_sha256\": " + json_text(source.model_sha256) + ", \"version\": " + json_text(source.version) +
           "}";
}

std::string word_of(const Option& option, const std::string& value) {
    for (std::size_t i = 0; i < option.choices_count; ++i)
        if (option.choices[i].name == value) return std::string(option.choices[i].label);
    return {};
}

// A value as web UIs write it; empty where they leave it out.
std::string web_ui_value(const Option& option, const Value& value) {
    switch (option.form) {
        case Form::none: break;
        case Form::general: return general(std::get<double>(value));
        case Form::word: return word_of(option, std::get<std::string>(value));
        case Form::plain: return std::visit(AsJson(), value);
        case Form::unless_zero:
        case Form::one_more_unless_zero: {
            const std::int64_t number = std::get<std::int64_t>(value);
            return number == 0 ? "" : std::to_string(number + (option.form == Form::one_more_unless_zero ? 1 : 0));
        }
    }
    return {};
}

void add_setting(std::string& line, std::string_view label, std::string_view value) {
    if (value.empty()) return;
    if (!line.empty()) line += ", ";
    line.append(label).append(": ").append(value);
}

void add_sampler(std::string& line, const Recorded& recorded) {
    if (recorded.plan != nullptr) {
        add_setting(line, "Sampler", "custom plan");
        return;
    }
    const std::string_view whole = recorded.scheduler;
    const WebUiSampler known = to_web_ui(whole.substr(0, whole.find(':')));
    add_setting(line, "Sampler", known.sampler.empty() ? whole : known.sampler);
    add_setting(line, "Schedule type", known.schedule_type);
}

std::string settings(const Recorded& recorded, const Values& values, const Source& source) {
    std::string line;
    for (const Option& option : OptionTable()) {
        if (option.kind == Kind::scheduler) add_sampler(line, recorded);
        const auto found = values.find(option.name);
        if (option.web_ui.empty() || found == values.end()) continue;
        const bool scaled = recorded.plus_plus && option.name == "guidance_scale";
        const Value value = scaled ? Value(PLUS_PLUS * recorded.guidance_scale) : found->second;
        add_setting(line, option.web_ui, web_ui_value(option, value));
    }
    add_setting(line, "Size", std::to_string(recorded.width) + "x" + std::to_string(recorded.height));
    // Python writes these also where they are empty.
    line += ", Model hash: " + source.model_sha256.substr(0, 10) + ", Model: " + source.model;
    return line + ", Version: latentrt " + source.version;
}

// The form that web UIs write and read: prompt, negative prompt, then a line of settings.
std::string parameters(const Recorded& recorded, const Values& values, const Source& source) {
    std::string text = recorded.prompt + "\n";
    if (recorded.negative_prompt && !recorded.negative_prompt->empty())
        text += "Negative prompt: " + *recorded.negative_prompt + "\n";
    return text + settings(recorded, values, source);
}

}  // namespace

Texts png_texts(const Recorded& recorded, const Source& source) {
    const Values values = values_of(recorded);
    return {{"parameters", parameters(recorded, values, source)}, {"latentrt", document(recorded, values, source)}};
}

std::string hash_of(const latentrt_pixels& picture) {
    const std::size_t row = static_cast<std::size_t>(picture.width) * static_cast<std::size_t>(picture.channels);
    const std::size_t stride = picture.stride == 0 ? row : picture.stride;
    Sha256 hash;
    for (std::size_t y = 0; y < static_cast<std::size_t>(picture.height); ++y) hash.add(picture.data + y * stride, row);
    return hash.hex();
}

std::string hash_of(const float* values, std::size_t count) {
    Sha256 hash;
    hash.add(values, count * sizeof(float));
    return hash.hex();
}

}  // namespace lrt
