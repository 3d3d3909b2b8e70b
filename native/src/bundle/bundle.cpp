#include "bundle.hpp"

#include "../base/error.hpp"
#include "../base/utf8.hpp"
#include "checks.hpp"
#include "records.hpp"

#include <sys/stat.h>
#include <unistd.h>
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <stdexcept>

namespace lrt {

namespace {

constexpr std::size_t MOST = std::size_t{1} << 26;  // bytes of a manifest; that of SDXL has 1 MB

// A number, a symbol, or a product such as B*G or 8*h.
Dimension dimension_from(const Json& json) {
    if (json.is_number_integer()) {
        // Numbers beyond 64 bits signed are read as unsigned, and refused as negative.
        const auto size = json.get<std::int64_t>();
        return {size, "", std::to_string(size)};
    }
    const std::string text = json.get<std::string>();
    Dimension dimension{1, "", text};
    bool valid = !text.empty() && text.size() < 40;
    for (std::size_t at = 0; valid; ++at) {
        const std::size_t end = std::min(text.find('*', at), text.size());
        const std::string part = text.substr(at, end - at);
        if (part.size() == 1 && std::string("BGhwSn").find(part[0]) != std::string::npos) {
            dimension.symbols += part;
        } else {
            const bool digits = !part.empty() && part.size() <= 4 && part[0] != '0' &&
                                part.find_first_not_of("0123456789") == std::string::npos;
            valid = digits && dimension.symbols.empty() && dimension.factor < (std::int64_t{1} << 31);
            if (valid) dimension.factor *= std::stoll(part);
        }
        if (end == text.size()) break;
        at = end;
    }
    if (!valid || dimension.symbols.empty())
        throw std::runtime_error("a tensor has the size " + shown(text, 40) +
                                 ": expected a product of numbers and B, G, h, w, S, n");
    return dimension;
}

std::vector<TensorSpec> tensors_from(const Json& json) {
    std::vector<TensorSpec> specs;
    for (const Json& tensor : json) {
        specs.push_back({tensor.at("name"), tensor.at("dtype"), {}});
        for (const Json& size : tensor.at("shape")) specs.back().shape.push_back(dimension_from(size));
    }
    return specs;
}

Graph graph_from(const Json& json) {
    Graph graph{json.at("file"), tensors_from(json.at("inputs")), tensors_from(json.at("outputs")), {}};
    for (const auto& [symbol, range] : json.at("dimensions").items()) {
        const Json& most = range.at("max");
        if (symbol.size() == 1)
            graph.dimensions[symbol[0]] = {range.at("min"), most.is_null() ? 0 : most.get<std::int64_t>()};
    }
    return graph;
}

TextEncoder text_encoder_from(const Json& json) {
    return {json.at("graph"),       json.at("tokenizer"),
            json.at("max_length"),  json.at("bos"),
            json.at("eos"),         json.at("pad"),
            json.at("hidden_size"), json.at("hidden_states"),
            json.at("pooled"),      json.at("embeddings").get<std::map<std::string, std::vector<std::int64_t>>>()};
}

Model model_from(const Json& json) {
    Model model;
    model.family = json.at("family");
    model.prediction_type = json.at("prediction_type");
    model.latent_channels = json.at("latent_channels");
    model.vae_scale_factor = json.at("vae_scale_factor");
    model.vae_tile = json.at("vae_tile");
    model.registers = json.at("registers");
    model.scaling_factor = json.at("scaling_factor");
    model.force_zeros_for_empty_prompt = json.at("force_zeros_for_empty_prompt");
    for (const Json& encoder : json.at("text_encoders")) model.text_encoders.push_back(text_encoder_from(encoder));
    if (const auto colours = json.find("latent_rgb"); colours != json.end() && !colours->is_null()) {
        for (const Json& row : *colours) {
            if (row.size() != 3) throw std::runtime_error("model.latent_rgb has a row that is not of 3 numbers");
            model.latent_rgb.push_back(row.get<std::array<double, 3>>());
        }
        if (model.latent_rgb.empty()) throw std::runtime_error("model.latent_rgb has no rows");
    }
    return model;
}

Defaults defaults_from(const Json& json) {
    return {json.at("height"),         json.at("width"),    json.at("num_inference_steps"),
            json.at("guidance_scale"), json.at("strength"), json.at("inpaint_strength")};
}

std::optional<Golden> golden_from(const Json& json) {
    if (json.is_null()) return std::nullopt;
    // Seeds are those of PyTorch: from -2**63 to 2**64 - 1, the negative ones counted from 2**64 down.
    const Json& seed = json.at("seed");
    const std::uint64_t bits =
        seed.is_number_unsigned() ? seed.get<std::uint64_t>() : static_cast<std::uint64_t>(seed.get<std::int64_t>());
    return Golden{json.at("file"),
                  json.at("prompt"),
                  json.at("negative_prompt"),
                  bits,
                  json.at("height"),
                  json.at("width"),
                  json.at("num_inference_steps"),
                  json.at("guidance_scale"),
                  json.at("embedding_tolerance"),
                  json.at("latents_tolerance"),
                  json.at("psnr_floor")};
}

Manifest manifest_from_json(const Json& json) {
    Manifest manifest;
    manifest.checkpoint_name = json.at("checkpoint").at("name");
    manifest.checkpoint_sha256 = json.at("checkpoint").at("sha256");
    manifest.precision = json.at("recipe").at("precision");
    manifest.vae_precision = json.at("recipe").at("vae_precision");
    manifest.opset = json.at("recipe").at("opset");
    manifest.model = model_from(json.at("model"));
    manifest.defaults = defaults_from(json.at("defaults"));
    manifest.scheduler = json.at("scheduler");
    if (json.contains("plans")) manifest.plans = json.at("plans").get<std::vector<std::string>>();
    for (const auto& [name, graph] : json.at("graphs").items()) manifest.graphs[name] = graph_from(graph);
    manifest.golden = golden_from(json.at("golden"));
    for (const auto& [name, facts] : json.at("files").items()) {
        const Json& size = facts.at("size");
        if (size.is_number_integer() && !size.is_number_unsigned())
            throw std::runtime_error("files." + shown(name, 80) + " has no valid size and sha256");
        manifest.files[name] = size;
    }
    return manifest;
}

void require_format(const Json& json) {
    const auto format = json.is_object() ? json.find("format") : json.end();
    const bool known = json.is_object() && format != json.end() && (*format == FORMATS[0] || *format == FORMATS[1]);
    if (!known)
        throw std::runtime_error("its format is " +
                                 (json.is_object() && format != json.end() ? format->dump() : std::string("missing")) +
                                 ": this library reads " + FORMATS[0] + " and " + FORMATS[1]);
    if (*format != FORMATS[0]) return;
    const auto has = [&](const char* record, const char* key) {
        const auto found = json.find(record);
        return found != json.end() && found->is_object() && found->contains(key);
    };
    if (const char* key = json.contains("plans")             ? "plans"
                          : has("recipe", "quantization")    ? "recipe.quantization"
                          : has("recipe", "ports")           ? "recipe.ports"
                          : has("graphs", "preview_decoder") ? "graphs.preview_decoder"
                                                             : nullptr)
        throw std::runtime_error(std::string("bundle.json has the key '") + key + "', which " + FORMATS[0] +
                                 " has not");
}

// Optional inputs of the UNet, for ControlNets and adapters.
void require_no_ports(const Json& json) {
    const Json ports = json.at("recipe").value("ports", Json::array());
    if (!ports.empty())
        throw std::runtime_error("its UNet has inputs for " + ports.at(0).get<std::string>() +
                                 ", which this library does not have: export it without --ports");
}

// SDXL's refiner, whose UNet is told an aesthetic score in place of the target size.
void require_no_score(const Manifest& manifest) {
    const auto time = manifest.graphs.find("time");
    if (time == manifest.graphs.end()) return;
    for (const TensorSpec& spec : time->second.inputs)
        if (spec.name == "time_ids" && spec.shape.size() == 2 && spec.shape[1].text == "5")
            throw std::runtime_error("it is SDXL's refiner, which this library does not draw with: use Python");
}

// The config of the checkpoint's own scheduler, which names its class.
Json scheduler_config(const Path& file) {
    try {
        Json config = json_from(bytes_of(file, MOST));
        if (!config.is_object() || !config.contains("_class_name") || !config.at("_class_name").is_string())
            throw std::runtime_error("it names no class");
        return config;
    } catch (const std::runtime_error& error) {
        throw bundle_error(file.string() + " cannot be used: " + error.what() + ". Copy the bundle again");
    }
}

}  // namespace

Manifest manifest_from(std::string_view text) {
    const Json json = json_from(text);
    require_format(json);
    require_manifest(json);
    require_no_ports(json);
    try {
        Manifest manifest = manifest_from_json(json);
        require_no_score(manifest);
        require_sound(manifest, json);
        return manifest;
    } catch (const Json::exception& error) {  // a number that does not fit
        throw std::runtime_error(error.what());
    }
}

Bundle open_bundle(const Path& folder) {
    const Path file = folder / "bundle.json";
    Bundle bundle{folder, {}, {}};
    try {
        bundle.manifest = manifest_from(bytes_of(file, MOST));
    } catch (const std::runtime_error& error) {
        throw bundle_error(file.string() + " cannot be used: " + error.what() +
                           ". Create a bundle with `latentrt export`, or copy it again");
    }
    for (const auto& [name, size] : bundle.manifest.files) {
        struct stat status{};
        if (stat(bundle.file(name).c_str(), &status) != 0 || !S_ISREG(status.st_mode))
            throw bundle_error(folder.string() + " is incomplete: " + name + " is missing. Copy the bundle again");
        if (static_cast<std::uint64_t>(status.st_size) != size)
            throw bundle_error(folder.string() + " is damaged: " + name + " has " + std::to_string(status.st_size) +
                               " bytes instead of " + std::to_string(size) + ". Copy the bundle again");
        if (access(bundle.file(name).c_str(), R_OK) != 0)
            throw bundle_error(bundle.file(name).string() + " cannot be read: " + std::strerror(errno));
    }
    bundle.scheduler_config = scheduler_config(bundle.file(bundle.manifest.scheduler));
    bundle.manifest.scheduler_class = bundle.scheduler_config.at("_class_name");
    return bundle;
}

std::vector<std::int64_t> shape_at(const TensorSpec& spec, const Sizes& sizes) {
    std::vector<std::int64_t> shape;
    for (const Dimension& dimension : spec.shape) {
        std::int64_t size = dimension.factor;
        bool known = true;
        for (const char symbol : dimension.symbols) {
            const auto found = sizes.find(symbol);
            known = known && found != sizes.end() && !__builtin_mul_overflow(size, found->second, &size);
        }
        if (!known) throw bundle_error("a size of " + spec.name + ", " + dimension.text + ", cannot be computed");
        shape.push_back(size);
    }
    return shape;
}

}  // namespace lrt
