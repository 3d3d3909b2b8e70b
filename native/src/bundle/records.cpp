#include "records.hpp"

#include "../base/utf8.hpp"

#include <algorithm>
#include <map>
#include <stdexcept>
#include <vector>

namespace lrt {

namespace {

// A type: s text, i integer, n number, b boolean, or the name of a record; in front of it ? may be null,
// [ a list of, { a mapping to.
struct Key {
    const char* name;
    const char* type;
    bool optional = false;
};

// As runtime/bundle/manifest.py, which explains the keys.
const std::map<std::string, std::vector<Key>>& records() {
    static const std::map<std::string, std::vector<Key>> table{
        {"Manifest",
         {{"format", "s"},
          {"producer", "Producer"},
          {"checkpoint", "Checkpoint"},
          {"recipe", "Recipe"},
          {"model", "Model"},
          {"defaults", "Defaults"},
          {"scheduler", "s"},
          {"graphs", "{Graph"},
          {"weights", "{[Weight"},
          {"engines", "[Engine"},
          {"golden", "?Golden"},
          {"files", "{File"},
          {"plans", "[s", true}}},
        {"Producer", {{"latentrt", "s"}, {"packages", "{s"}}},
        {"Checkpoint", {{"name", "s"}, {"sha256", "s"}, {"additions", "[Addition"}}},
        {"Addition", {{"kind", "s"}, {"name", "s"}, {"sha256", "s"}, {"weight", "?n"}}},
        {"Recipe",
         {{"precision", "s"},
          {"vae_precision", "s"},
          {"opset", "i"},
          {"compact", "b"},
          {"quantization", "?Quantization", true},
          {"ports", "[s", true}}},
        {"Quantization",
         {{"to", "s"},
          {"target", "s"},
          {"level", "n"},
          {"graphs", "[s"},
          {"report", "s"},
          {"calibration", "?s"},
          {"prompts", "i"},
          {"prompts_sha256", "s"},
          {"source_sha256", "s"},
          {"gate_mean", "n"},
          {"gate_worst", "n"},
          {"error_mean", "n"},
          {"error_worst", "n"},
          {"psnr", "n"}}},
        {"Model",
         {{"family", "s"},
          {"prediction_type", "s"},
          {"latent_channels", "i"},
          {"vae_scale_factor", "i"},
          {"vae_tile", "i"},
          {"scaling_factor", "n"},
          {"registers", "i"},
          {"image_rounding", "s"},
          {"force_zeros_for_empty_prompt", "b"},
          {"text_encoders", "[TextEncoder"},
          {"latent_rgb", "?[[n", true}}},
        {"TextEncoder",
         {{"graph", "s"},
          {"tokenizer", "s"},
          {"max_length", "i"},
          {"bos", "i"},
          {"eos", "i"},
          {"pad", "i"},
          {"hidden_size", "i"},
          {"hidden_states", "i"},
          {"pooled", "b"},
          {"embeddings", "{[i"}}},
        {"Defaults",
         {{"height", "i"},
          {"width", "i"},
          {"num_inference_steps", "i"},
          {"guidance_scale", "n"},
          {"strength", "n"},
          {"inpaint_strength", "n"}}},
        {"Graph", {{"file", "s"}, {"inputs", "[Tensor"}, {"outputs", "[Tensor"}, {"dimensions", "{Range"}}},
        {"Tensor", {{"name", "s"}, {"dtype", "s"}, {"shape", "[d"}}},
        {"Range", {{"min", "i"}, {"max", "?i"}}},
        {"Weight",
         {{"graph", "s"},
          {"initializer", "s"},
          {"transposed", "b"},
          {"dtype", "s"},
          {"stored_dtype", "s"},
          {"shape", "[i"},
          {"offset", "?i"}}},
        {"Engine",
         {{"graph", "s"},
          {"file", "s"},
          {"backend", "s"},
          {"version", "s"},
          {"device", "?s"},
          {"compute_capabilities", "[s"},
          {"precision", "s"},
          {"tf32", "b"},
          {"profile", "{[i"},
          {"options", "{s"},
          {"host_code", "b"},
          {"onnx_sha256", "s"},
          {"weights_sha256", "?s"},
          {"layers", "?s", true}}},
        {"Golden",
         {{"file", "s"},
          {"prompt", "s"},
          {"negative_prompt", "s"},
          {"seed", "i"},
          {"height", "i"},
          {"width", "i"},
          {"num_inference_steps", "i"},
          {"guidance_scale", "n"},
          {"embedding_tolerance", "n"},
          {"latents_tolerance", "n"},
          {"psnr_floor", "n"}}},
        {"File", {{"size", "i"}, {"sha256", "s"}}},
    };
    return table;
}

void require(const Json& json, const char* type, const std::string& where);

[[noreturn]] void mistyped(const Json& json, const std::string& expected, const std::string& where) {
    std::string given = json.dump(-1, ' ', false, Json::error_handler_t::replace);
    if (given.size() > 60) given = std::string(first_points(given, 60)) + "…";
    throw std::runtime_error(where + ": expected " + expected + ", got " + given);
}

void require_record(const Json& json, const std::string& name, const std::string& where) {
    if (!json.is_object()) mistyped(json, "an object", where);
    const std::vector<Key>& keys = records().at(name);
    for (const auto& [given, value] : json.items()) {
        const auto known =
            std::find_if(keys.begin(), keys.end(), [&name = given](const Key& key) { return name == key.name; });
        if (known == keys.end()) throw std::runtime_error(where + " has an unknown key " + shown(given));
        require(value, known->type, where + "." + given);
    }
    for (const Key& key : keys)
        if (!key.optional && !json.contains(key.name))
            throw std::runtime_error(where + " is missing '" + key.name + "'");
}

void require_each(const Json& json, const char* type, const std::string& where) {
    const bool list = json.is_array();
    for (const auto& [key, value] : json.items())
        require(value, type, list ? where + "[" + key + "]" : where + "." + shown(key, 40));
}

void require(const Json& json, const char* type, const std::string& where) {
    const auto expect = [&](bool holds, const char* expected) {
        if (!holds) mistyped(json, expected, where);
    };
    switch (type[0]) {
        case '?':
            if (!json.is_null()) require(json, type + 1, where);
            return;
        case '[': expect(json.is_array(), "a list"); return require_each(json, type + 1, where);
        case '{': expect(json.is_object(), "an object"); return require_each(json, type + 1, where);
        case 's': return expect(json.is_string(), "a text");
        case 'i': return expect(json.is_number_integer(), "an integer of 64 bits");
        case 'n': return expect(json.is_number(), "a number");
        case 'b': return expect(json.is_boolean(), "true or false");
        case 'd': return expect(json.is_string() || json.is_number_integer(), "a number or a text");
        default: return require_record(json, type, where);
    }
}

}  // namespace

void require_manifest(const Json& manifest) { require_record(manifest, "Manifest", "bundle.json"); }

}  // namespace lrt
