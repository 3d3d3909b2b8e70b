#include "checks.hpp"

#include "../base/utf8.hpp"
#include "graph_checks.hpp"
#include "unused_checks.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

namespace lrt {

namespace {

constexpr double HIGH = 2147483648.0;

struct Range {
    const char* record;
    const char* key;
    double least, most;
};

constexpr Range RANGES[] = {
    {"model", "latent_channels", 1, 128},
    {"model", "vae_scale_factor", 1, 64},
    {"model", "vae_tile", 4, 16384},
    {"model", "scaling_factor", 1e-6, 1e6},
    {"model", "registers", 1, 64},
    {"defaults", "height", 1, 16384},
    {"defaults", "width", 1, 16384},
    {"defaults", "num_inference_steps", 1, 10000},
    {"defaults", "guidance_scale", 0, 1000},
    {"defaults", "strength", 1e-6, 1},
    {"defaults", "inpaint_strength", 1e-6, 1},
    {"golden", "height", 1, 16384},
    {"golden", "width", 1, 16384},
    {"golden", "num_inference_steps", 1, 10000},
    {"golden", "guidance_scale", 0, 1000},
    {"golden", "embedding_tolerance", 0, 0.5},
    {"golden", "latents_tolerance", 0, 0.5},
    {"golden", "psnr_floor", 10, 1000},
};
constexpr Range OF_ENCODER[] = {
    {"", "max_length", 3, 10000}, {"", "bos", 0, HIGH},          {"", "eos", 0, HIGH},
    {"", "pad", 0, HIGH},         {"", "hidden_size", 1, 65536}, {"", "hidden_states", 1, 1024},
};

void require_range(const Json& record, const std::string& where, const Range& range) {
    const double value = record.at(range.key).get<double>();
    if (!(range.least <= value && value <= range.most))
        throw std::runtime_error(where + "." + range.key + " is out of range: expected " + Json(range.least).dump() +
                                 " to " + Json(range.most).dump());
}

void check_numbers(const Manifest& manifest, const Json& json) {
    for (const Range& range : RANGES)
        if (!json.at(range.record).is_null()) require_range(json.at(range.record), range.record, range);
    const Json& encoders = json.at("model").at("text_encoders");
    for (std::size_t i = 0; i < encoders.size(); ++i)
        for (const Range& range : OF_ENCODER)
            require_range(encoders[i], "model.text_encoders[" + std::to_string(i) + "]", range);
    const std::int64_t factor = manifest.model.vae_scale_factor;
    for (const char* record : {"defaults", "golden"})
        for (const char* side : {"height", "width"})
            if (!json.at(record).is_null() && json.at(record).at(side).get<std::int64_t>() % factor != 0)
                throw std::runtime_error(std::string(record) + "." + side + ": expected a multiple of " +
                                         std::to_string(factor));
    const auto& colours = manifest.model.latent_rgb;
    if (!colours.empty() && colours.size() != static_cast<std::size_t>(manifest.model.latent_channels) + 1)
        throw std::runtime_error("model.latent_rgb is not " + std::to_string(manifest.model.latent_channels + 1) +
                                 " rows of 3 numbers");
    for (const auto& row : colours)
        for (const double value : row)
            if (!(std::abs(value) < 1e6)) throw std::runtime_error("model.latent_rgb holds numbers that are too large");
}

// Names in a manifest are relative and never leave the folder.
bool is_inside(const std::string& name) {
    if (name.empty() || name[0] == '/' || name.find('\\') != std::string::npos || name.find('\0') != std::string::npos)
        return false;
    bool any = false;
    for (std::size_t at = 0; at <= name.size();) {
        const std::size_t end = std::min(name.find('/', at), name.size());
        const std::string part = name.substr(at, end - at);
        if (part == "..") return false;
        any = any || (!part.empty() && part != ".");
        at = end + 1;
    }
    return any;
}

void require_listed(const Manifest& manifest, const std::string& where, const std::string& name) {
    if (manifest.files.count(name) == 0)
        throw std::runtime_error(where + " is " + shown(name) + ", which files does not list");
}

void check_files(const Manifest& manifest, const Json& json) {
    require_listed(manifest, "scheduler", manifest.scheduler);
    for (const auto& [name, graph] : manifest.graphs) require_listed(manifest, "graphs." + name + ".file", graph.file);
    for (const TextEncoder& encoder : manifest.model.text_encoders)
        require_listed(manifest, "model.text_encoders: tokenizer", encoder.tokenizer);
    for (const std::string& name : manifest.plans) {
        require_listed(manifest, "plans", name);
        if (std::count(manifest.plans.begin(), manifest.plans.end(), name) > 1)
            throw std::runtime_error("plans lists a file twice");
    }
    if (manifest.golden) require_listed(manifest, "golden.file", manifest.golden->file);
    for (const Json& engine : json.at("engines")) {
        require_listed(manifest, "engines: file", engine.at("file"));
        if (engine.contains("layers") && !engine.at("layers").is_null())
            require_listed(manifest, "engines: layers", engine.at("layers"));
    }
    for (const auto& [name, facts] : json.at("files").items()) {
        if (!is_inside(name)) throw std::runtime_error("files lists a file outside the bundle: " + shown(name));
        const std::string hash = facts.at("sha256");
        if (!hash.empty() && (hash.size() != 64 || hash.find_first_not_of("0123456789abcdef") != std::string::npos))
            throw std::runtime_error("files." + shown(name) + " has no valid size and sha256");
    }
}

void check_embeddings(const TextEncoder& encoder) {
    for (const auto& [word, ids] : encoder.embeddings) {
        const auto valid = [](std::int64_t id) { return id >= 0 && static_cast<double>(id) < HIGH; };
        if (ids.empty() || ids.size() > 1000 || !std::all_of(ids.begin(), ids.end(), valid))
            throw std::runtime_error("model.text_encoders.embeddings: " + shown(word, 40) +
                                     " needs 1 to 1000 ids that are not negative");
    }
}

}  // namespace

void require_sound(const Manifest& manifest, const Json& json) {
    check_numbers(manifest, json);
    check_files(manifest, json);
    for (const TextEncoder& encoder : manifest.model.text_encoders) check_embeddings(encoder);
    check_unused(manifest, json);
    check_graphs(manifest);
}

}  // namespace lrt
