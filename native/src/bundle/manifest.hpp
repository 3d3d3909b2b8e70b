// The content of bundle.json, as far as drawing needs it. engines/README.md specifies the format.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace lrt {

struct TextEncoder {
    std::string graph, tokenizer;  // name of the graph; file in the bundle
    std::int64_t max_length = 0, bos = 0, eos = 0, pad = 0, hidden_size = 0, hidden_states = 0;
    bool pooled = false;
    // Words of textual inversions -> the ids that each expands to; the tokenizer gives the first one.
    std::map<std::string, std::vector<std::int64_t>> embeddings;
};

struct Model {
    std::string family, prediction_type;
    std::int64_t latent_channels = 0, vae_scale_factor = 0, vae_tile = 0, registers = 0;
    double scaling_factor = 0;
    bool force_zeros_for_empty_prompt = false;
    std::vector<TextEncoder> text_encoders;
    // (C + 1) rows of RGB; empty where the bundle has none.
    std::vector<std::array<double, 3>> latent_rgb;
};

struct Defaults {
    std::int64_t height = 0, width = 0, num_inference_steps = 0;
    double guidance_scale = 0, strength = 0, inpaint_strength = 0;
};

// A dimension: factor * the product of the symbols, such as 8*h, B*G, 77.
struct Dimension {
    std::int64_t factor = 1;
    std::string symbols;
    std::string text;  // as it is written; equal dimensions are written equally
    bool operator==(const Dimension& other) const { return text == other.text; }
};

struct TensorSpec {
    std::string name, dtype;
    std::vector<Dimension> shape;
};

struct Graph {
    std::string file;
    std::vector<TensorSpec> inputs, outputs;
    // Symbol -> least and greatest size; 0: no limit.
    std::map<char, std::pair<std::int64_t, std::int64_t>> dimensions;

    const TensorSpec* input(const std::string& name) const {
        for (const TensorSpec& spec : inputs)
            if (spec.name == name) return &spec;
        return nullptr;
    }
    bool takes(const std::string& name) const { return input(name) != nullptr; }
};

struct Golden {
    std::string file, prompt, negative_prompt;
    std::uint64_t seed = 0;
    std::int64_t height = 0, width = 0, num_inference_steps = 0;
    double guidance_scale = 0, embedding_tolerance = 0, latents_tolerance = 0, psnr_floor = 0;
};

struct Manifest {
    std::string checkpoint_name, checkpoint_sha256;
    std::string precision, vae_precision;
    std::int64_t opset = 0;
    Model model;
    Defaults defaults;
    std::string scheduler;           // file of the scheduler's config
    std::string scheduler_class;     // the class that it names
    std::vector<std::string> plans;  // files of plan packs; optional, latentrt.bundle/2
    std::map<std::string, Graph> graphs;
    std::optional<Golden> golden;
    std::map<std::string, std::uint64_t> files;  // sizes by name
};

}  // namespace lrt
