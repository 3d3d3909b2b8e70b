// bundle.json, as text, or as changes to a manifest that is right: the first byte chooses one.
#include "../../src/base/utf8.hpp"
#include "../../src/bundle/bundle.hpp"
#include "input.hpp"

#include <vector>

namespace {

using lrt::Json;

// What the runtime takes for granted of a manifest that was accepted.
void check_manifest(const lrt::Manifest& manifest) {
    const lrt::Sizes sizes{{'B', 2}, {'G', 2}, {'h', 8}, {'w', 8}, {'S', 77}, {'n', 3}};
    for (const auto& [name, graph] : manifest.graphs)
        for (const auto* specs : {&graph.inputs, &graph.outputs})
            for (const lrt::TensorSpec& spec : *specs) {
                fuzz::check(!spec.shape.empty());
                for (const std::int64_t side : lrt::shape_at(spec, sizes)) fuzz::check(side > 0);
            }
    for (const char* name : {"context", "time", "denoise", "blend", "vae_decoder", "vae_encoder"})
        fuzz::check(manifest.graphs.count(name) != 0);
    for (const lrt::TextEncoder& encoder : manifest.model.text_encoders)
        fuzz::check(manifest.graphs.count(encoder.graph) != 0 && manifest.files.count(encoder.tokenizer) != 0);
    for (const auto& [name, size] : manifest.files) fuzz::check(!name.empty() && name[0] != '/');
    fuzz::check(manifest.model.latent_rgb.empty() ||
                manifest.model.latent_rgb.size() == static_cast<std::size_t>(manifest.model.latent_channels) + 1);
}

void read(const std::string& text) {
    try {
        check_manifest(lrt::manifest_from(text));
    } catch (const std::runtime_error& error) {
        fuzz::check(lrt::decoded(error.what()).has_value());
    }
}

// A member of an object or list, some levels down.
Json* member(Json& json, fuzz::Input& input) {
    Json* at = &json;
    for (int depth = 0; depth < 8 && (at->is_object() || at->is_array()) && !at->empty(); ++depth) {
        auto next = at->begin();
        std::advance(next, static_cast<std::ptrdiff_t>(input.number<std::uint16_t>() % at->size()));
        at = &*next;
        if (input.below(8) == 7) break;
    }
    return at;
}

Json value_of(fuzz::Input& input) {
    switch (input.below(12)) {
        case 0: return nullptr;
        case 1: return input.below(2) == 1;
        case 2: return input.number<std::int8_t>();
        case 3: return input.number<std::int64_t>();
        case 4: return input.number<std::uint64_t>();
        case 5: return input.number<double>();
        case 6: return input.number<std::int32_t>() / 65536.0;
        case 7: return Json::array();
        case 8: return Json::object();
        case 9: return Json::array({value_of(input)});
        case 10: return Json{{input.text(), value_of(input)}};
        default: return input.text();
    }
}

void change(Json& json, fuzz::Input& input) {
    Json* at = member(json, input);
    switch (input.below(6)) {
        case 0:
            if (at->is_object() && !at->empty()) at->erase(at->begin());
            return;
        case 1:
            if (at->is_object()) (*at)[input.text()] = value_of(input);
            return;
        case 2:
            if (at->is_array()) at->push_back(value_of(input));
            return;
        case 3: {
            const Json copy = *member(json, input);
            *at = copy;
            return;
        }
        default: *at = value_of(input);
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static const std::vector<Json> known = [] {
        std::vector<Json> all;
        for (const char* name : fuzz::MANIFESTS) all.push_back(lrt::json_from(fuzz::data_file(name)));
        return all;
    }();
    if (size > 0 && data[0] >= ' ') {  // as {
        read(std::string(reinterpret_cast<const char*>(data), size));
        return 0;
    }
    fuzz::Input input(data, size);
    Json json = known[input.below(known.size())];
    for (int changes = 0; changes < 16 && !input.rest().empty(); ++changes) change(json, input);
    read(json.dump(-1, ' ', false, Json::error_handler_t::replace));
    return 0;
}
