#include "graph_checks.hpp"

#include "../base/utf8.hpp"

#include <algorithm>
#include <set>
#include <stdexcept>

namespace lrt {

namespace {

using Specs = std::vector<TensorSpec>;
using Known = std::map<std::string, std::vector<Dimension>>;

[[noreturn]] void fail(const std::string& graph, const std::string& fault) {
    throw std::runtime_error("graphs." + std::string(first_points(graph, 40)) + fault);
}

Dimension size(std::int64_t number) { return {number, "", std::to_string(number)}; }
Dimension symbol(const char* letter, std::int64_t factor = 1) {
    return {factor, letter, (factor == 1 ? "" : std::to_string(factor) + "*") + letter};
}

// The last one of a name, as in Python, where a mapping keeps the last.
const TensorSpec* find(const Specs& specs, const std::string& name) {
    const auto found = std::find_if(specs.rbegin(), specs.rend(), [&](const TensorSpec& s) { return s.name == name; });
    return found == specs.rend() ? nullptr : &*found;
}

struct Tensors {
    const char* graph;
    std::vector<const char*> inputs, outputs;
    bool optional = false;
};

// Graph -> the inputs and outputs that it must have.
const std::vector<Tensors>& required() {
    static const std::vector<Tensors> table{
        {"context", {"hidden_states"}, {}},
        {"time", {"timesteps"}, {"time_features"}},
        {"denoise",
         {"state", "coefficients", "guidance", "guidance_rescale", "noise", "time_features"},
         {"next_state"}},
        {"blend", {"state", "mask", "clean", "noise", "blend"}, {"next_state"}},
        {"vae_decoder", {"latents"}, {"images", "nonfinite"}},
        {"vae_encoder", {"images"}, {"mean"}},
        {"preview_decoder", {"latents"}, {"images", "nonfinite"}, true},
    };
    return table;
}

// The sizes that the runtime takes for granted.
Known known_shapes(const Model& model, const std::string& graph) {
    const Dimension b = symbol("B"), h = symbol("h"), w = symbol("w"), c = size(model.latent_channels);
    const std::vector<Dimension> latents{b, c, h, w}, state{b, size(model.registers), c, h, w};
    if (graph == "denoise")
        return {{"state", state},
                {"next_state", state},
                {"coefficients", {b, size(model.registers), size(model.registers + 2)}},
                {"guidance", {b, symbol("G")}},
                {"guidance_rescale", {b}},
                {"noise", latents},
                {"extra", {b, size(model.latent_channels + 1), h, w}}};
    if (graph == "blend")
        return {{"state", state},   {"next_state", state}, {"mask", {b, size(1), h, w}},
                {"clean", latents}, {"noise", latents},    {"blend", {b, size(2)}}};
    if (graph == "time") return {{"timesteps", {symbol("n")}}, {"time_ids", {symbol("n"), size(6)}}};
    if (graph == "context") {
        std::int64_t width = 0;
        for (const TextEncoder& encoder : model.text_encoders) width += encoder.hidden_size;
        return {{"hidden_states", {symbol("n"), symbol("S"), size(width)}}};
    }
    const std::int64_t factor = model.vae_scale_factor;
    const std::vector<Dimension> pixels{b, symbol("h", factor), symbol("w", factor), size(3)};
    if (graph == "vae_encoder") return {{"images", pixels}, {"mean", latents}, {"logvar", latents}};
    return {{"latents", latents}, {"images", pixels}, {"nonfinite", {b}}};
}

void check_known(const Manifest& manifest, const std::string& name, const Graph& graph) {
    const Known known = known_shapes(manifest.model, name);
    for (const Specs* specs : {&graph.inputs, &graph.outputs})
        for (const TensorSpec& spec : *specs) {
            const auto found = known.find(spec.name);
            if (found == known.end()) continue;
            const char* dtype = spec.name == "nonfinite"                         ? "int32"
                                : spec.name == "images" && name != "vae_encoder" ? "uint8"
                                                                                 : "float32";
            if (spec.dtype != dtype || spec.shape != found->second)
                fail(name, ": " + spec.name + " has another type or shape than the format says");
        }
}

void check_required(const Manifest& manifest) {
    for (const Tensors& tensors : required()) {
        const auto found = manifest.graphs.find(tensors.graph);
        if (found == manifest.graphs.end() && tensors.optional) continue;
        if (found == manifest.graphs.end()) fail(tensors.graph, " is missing");
        for (const char* name : tensors.inputs)
            if (!found->second.takes(name)) fail(tensors.graph, std::string(" has no tensor ") + name);
        for (const char* name : tensors.outputs)
            if (find(found->second.outputs, name) == nullptr)
                fail(tensors.graph, std::string(" has no tensor ") + name);
        check_known(manifest, tensors.graph, found->second);
    }
}

bool same_but_rows(const TensorSpec& a, const TensorSpec& b) {
    return a.dtype == b.dtype && a.shape.size() == b.shape.size() && !a.shape.empty() &&
           std::equal(a.shape.begin() + 1, a.shape.end(), b.shape.begin() + 1);
}

// `denoise` reads what `context` and `time` give, and has no input that nobody knows.
void check_denoise(const Manifest& manifest) {
    const Graph& denoise = manifest.graphs.at("denoise");
    const std::set<std::string> own{"state", "coefficients", "guidance", "guidance_rescale", "noise", "extra"};
    Specs given = manifest.graphs.at("context").outputs;
    const Specs& of_time = manifest.graphs.at("time").outputs;
    given.insert(given.end(), of_time.begin(), of_time.end());
    for (const TensorSpec& spec : denoise.inputs) {
        if (own.count(spec.name) != 0) continue;
        const TensorSpec* source = find(given, spec.name);
        if (source == nullptr || !same_but_rows(*source, spec))
            fail("denoise", ": the input " + shown(spec.name, 40) + " is no output of context or time");
        if (spec.shape[0].text != "B*G") fail("denoise", ": the input " + shown(spec.name, 40) + " has not B*G rows");
    }
    for (const TensorSpec& spec : given) {
        if (!denoise.takes(spec.name)) fail("denoise", " has no input " + shown(spec.name, 40));
        if (own.count(spec.name) != 0) fail("denoise", ": another graph gives its input " + spec.name);
    }
}

void check_time(const Manifest& manifest) {
    bool pooled = false;
    for (const TextEncoder& encoder : manifest.model.text_encoders) pooled = pooled || encoder.pooled;
    for (const TensorSpec& spec : manifest.graphs.at("time").inputs) {
        if (spec.name == "timesteps") continue;
        const bool known =
            spec.name == "time_ids" || spec.name == "guidance_embedding" || (pooled && spec.name == "pooled");
        if (!known) fail("time", " has the input " + shown(spec.name, 40) + ", which is not in the format");
        if (spec.shape.size() != 2 || !spec.shape[1].symbols.empty() || spec.shape[1].factor < 4)
            fail("time", ": " + spec.name + " has another shape than (n, a number)");
    }
}

void check_tensor(const std::string& graph, const TensorSpec& spec) {
    const std::set<std::string> dtypes{"float64", "float32", "float16", "bfloat16", "int64", "int32", "uint8"};
    if (dtypes.count(spec.dtype) == 0)
        fail(graph, ": " + shown(spec.name, 40) + " has the dtype " + shown(spec.dtype, 40));
    if (spec.shape.empty()) fail(graph, ": " + shown(spec.name, 40) + " has no sizes");
    for (const Dimension& dimension : spec.shape)
        if (dimension.factor < 1 || dimension.factor >= (std::int64_t{1} << 31))
            fail(graph, ": " + shown(spec.name, 40) + " has a size out of range");
}

// Tensors by themselves; and every size of an output must follow from those of the inputs.
void check_graph(const std::string& name, const Graph& graph) {
    std::string symbols;
    std::set<std::string> inputs, outputs;
    for (const TensorSpec& spec : graph.inputs) {
        check_tensor(name, spec);
        if (!inputs.insert(spec.name).second) fail(name, " has a tensor twice");
        for (const Dimension& dimension : spec.shape) symbols += dimension.symbols;
    }
    for (const TensorSpec& spec : graph.outputs) {
        check_tensor(name, spec);
        if (!outputs.insert(spec.name).second) fail(name, " has a tensor twice");
        for (const Dimension& dimension : spec.shape)
            if (dimension.symbols.find_first_not_of(symbols) != std::string::npos)
                fail(name, ": a size of " + shown(spec.name, 40) + " is not one of its inputs");
    }
}

void check_encoder(const Manifest& manifest, const TextEncoder& encoder) {
    const auto found = manifest.graphs.find(encoder.graph);
    if (found == manifest.graphs.end())
        throw std::runtime_error("model.text_encoders: graph is " + shown(encoder.graph, 40) +
                                 ", which is not in graphs");
    const Graph& graph = found->second;
    const std::vector<Dimension> shape{symbol("n"), size(encoder.hidden_states), size(encoder.max_length),
                                       size(encoder.hidden_size)};
    const TensorSpec* states = find(graph.outputs, "hidden_states");
    if (states == nullptr || states->shape != shape)
        fail(encoder.graph, " has no hidden_states of the shape that model.text_encoders says");
    const std::vector<Dimension> ids{symbol("n"), size(encoder.max_length)};
    if (graph.inputs.size() != 1 || graph.inputs[0].name != "input_ids" || graph.inputs[0].shape != ids)
        fail(encoder.graph, " must have the input input_ids (n, max_length) alone");
    const TensorSpec* pooled = find(graph.outputs, "pooled");
    if (encoder.pooled && (pooled == nullptr || pooled->shape.size() != 2 || !pooled->shape[1].symbols.empty()))
        fail(encoder.graph, " has no output pooled (n, P)");
}

}  // namespace

void check_graphs(const Manifest& manifest) {
    const std::size_t encoders = manifest.model.text_encoders.size();
    if (encoders < 1 || encoders > 8)
        throw std::runtime_error("model.text_encoders has " + std::to_string(encoders) + " entries: expected 1 or 2");
    for (const TextEncoder& encoder : manifest.model.text_encoders) {
        check_encoder(manifest, encoder);
        if (encoder.max_length != manifest.model.text_encoders.front().max_length)
            throw std::runtime_error("model.text_encoders have different max_length");
    }
    for (const auto& [name, graph] : manifest.graphs) check_graph(name, graph);
    check_required(manifest);
    check_denoise(manifest);
    check_time(manifest);
}

}  // namespace lrt
