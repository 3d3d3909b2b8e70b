// The manifest of a bundle, as far as drawing from a text needs it. engines/README.md specifies the format.
#pragma once

#include "json.hpp"

#include <cstdint>
#include <map>
#include <vector>

namespace latentrt {

// The text encoder and the frame of its ids: [bos], the text's ids, [eos], then pad.
struct TextEncoder {
    std::int64_t max_length = 0, bos = 0;
};

// How the golden outputs were made, and how near a runtime must come to them.
struct Golden {
    Path file;
    std::uint64_t seed = 0;
    std::int64_t height = 0, width = 0;
    float guidance_scale = 0;
    double latents_tolerance = 0, psnr_floor = 0;
};

struct Graph {
    Path file;
    std::vector<std::string> inputs, outputs;
};

struct Bundle {
    std::string prediction_type;
    std::int64_t latent_channels = 0, vae_scale_factor = 0, registers = 0;
    TextEncoder text_encoder;
    std::map<std::string, Graph> graphs;
    Golden golden;

    const Graph& graph(const std::string& name) const {
        const auto found = graphs.find(name);
        if (found == graphs.end()) throw Error("this bundle has no graph " + name);
        return found->second;
    }
};

// Names in a manifest are relative and never leave the folder.
inline Path file_in(const Path& folder, const std::string& name) {
    const Path path(name);
    bool inside = !path.empty() && path.is_relative() && name.find('\\') == std::string::npos;
    for (const Path& part : path) inside = inside && part != "..";
    if (!inside) throw Error(folder.string() + ": the manifest names a file outside of the bundle: " + name);
    return folder / path;
}

inline Graph graph_from_json(const Path& folder, const Json& json) {
    Graph graph{file_in(folder, json.at("file").get<std::string>()), {}, {}};
    for (const Json& tensor : json.at("inputs")) graph.inputs.push_back(tensor.at("name"));
    for (const Json& tensor : json.at("outputs")) graph.outputs.push_back(tensor.at("name"));
    return graph;
}

inline TextEncoder text_encoder_from_json(const Json& encoders) {
    // SDXL adds pooled text and sizes as inputs of `time`: engines/README.md, "Tensors".
    if (encoders.size() != 1 || encoders.at(0).at("pooled").get<bool>())
        throw Error("this example draws with one text encoder without pooled text (Stable Diffusion 1.x and 2.x)");
    const Json& json = encoders.at(0);
    refuse_unknown_keys(json, "bundle.json, model.text_encoders",
                        {"graph", "tokenizer", "max_length", "bos", "eos", "pad", "hidden_size", "hidden_states",
                         "pooled", "embeddings"});
    return {json.at("max_length"), json.at("bos")};
}

inline Golden golden_from_json(const Path& folder, const Json& json) {
    if (json.is_null()) throw Error(folder.string() + " holds no golden outputs; export it again");
    return {file_in(folder, json.at("file").get<std::string>()),
            json.at("seed"),
            json.at("height"),
            json.at("width"),
            json.at("guidance_scale"),
            json.at("latents_tolerance"),
            json.at("psnr_floor")};
}

// Opens a bundle: checks the format and the size of every file, weights included. Hashes are for `latentrt verify`,
// once after a copy.
inline Bundle open_bundle(const Path& folder) {
    return with_json(folder / "bundle.json", [&](const Json& json) {
        const std::string format = json.at("format");
        if (format != "latentrt.bundle/1")
            throw Error(folder.string() + " has the format " + format + "; this program reads latentrt.bundle/1");
        refuse_unknown_keys(json, "bundle.json",
                            {"format", "producer", "checkpoint", "recipe", "model", "defaults", "scheduler", "graphs",
                             "weights", "engines", "golden", "files"});
        for (const auto& [name, facts] : json.at("files").items()) {
            const Path file = file_in(folder, name);
            std::error_code missing;
            const std::uintmax_t size = std::filesystem::file_size(file, missing);
            if (missing) throw Error(file.string() + " is missing: copy the bundle again");
            if (size != facts.at("size").get<std::uintmax_t>())
                throw Error(file.string() + " has " + std::to_string(size) + " bytes, not " + facts.at("size").dump() +
                            ": copy the bundle again");
        }
        const Json& model = json.at("model");
        refuse_unknown_keys(model, "bundle.json, model",
                            {"family", "prediction_type", "latent_channels", "vae_scale_factor", "vae_tile",
                             "scaling_factor", "registers", "image_rounding", "force_zeros_for_empty_prompt",
                             "text_encoders", "latent_rgb"});
        Bundle bundle;
        bundle.prediction_type = model.at("prediction_type");
        bundle.latent_channels = model.at("latent_channels");
        bundle.vae_scale_factor = model.at("vae_scale_factor");
        bundle.registers = model.at("registers");
        bundle.text_encoder = text_encoder_from_json(model.at("text_encoders"));
        bundle.golden = golden_from_json(folder, json.at("golden"));
        for (const auto& [name, graph] : json.at("graphs").items())
            bundle.graphs[name] = graph_from_json(folder, graph);
        return bundle;
    });
}

}  // namespace latentrt
