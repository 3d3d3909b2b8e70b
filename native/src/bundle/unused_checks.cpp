#include "unused_checks.hpp"

#include "../base/utf8.hpp"

#include <algorithm>
#include <initializer_list>
#include <stdexcept>
#include <utility>

namespace lrt {

namespace {

constexpr std::int64_t HIGH = std::int64_t{1} << 31;
constexpr std::pair<const char*, std::uint64_t> BYTES[] = {
    {"float64", 8}, {"float32", 4}, {"float16", 2}, {"bfloat16", 2}, {"int64", 8}, {"int32", 4}, {"uint8", 1},
};

// Bytes of an element; 0 for an unknown dtype.
std::uint64_t bytes_of(const std::string& dtype) {
    for (const auto& [name, bytes] : BYTES)
        if (dtype == name) return bytes;
    return 0;
}

// Whether these bytes of a weight lie in a file of this size.
bool lies_within(std::int64_t offset, const Json& shape, std::uint64_t bytes, std::uint64_t file) {
    std::uint64_t end = bytes;
    for (const Json& side : shape)
        if (__builtin_mul_overflow(end, side.get<std::uint64_t>(), &end)) end = file + 1;
    const bool zero = std::any_of(shape.begin(), shape.end(), [](const Json& side) { return side == 0; });
    if (zero) end = 0;
    const auto from = static_cast<std::uint64_t>(offset);
    return offset >= 0 && from <= file && end <= file - from;
}

void check_weight(const Manifest& manifest, const std::string& where, const Json& use) {
    const auto graph = manifest.graphs.find(use.at("graph").get<std::string>());
    const std::uint64_t bytes = bytes_of(use.at("stored_dtype"));
    if (graph == manifest.graphs.end() || bytes == 0 || bytes_of(use.at("dtype")) == 0)
        throw std::runtime_error(where + ": unknown graph or dtype");
    for (const Json& side : use.at("shape"))
        if (const auto size = side.get<std::int64_t>(); size < 0 || size >= HIGH)
            throw std::runtime_error(where + ": the shape has sides out of range");
    if (use.at("offset").is_null()) return;
    const std::string name = graph->second.file + ".data";
    const auto file = manifest.files.find(name);
    const bool within =
        file != manifest.files.end() && lies_within(use.at("offset"), use.at("shape"), bytes, file->second);
    if (!within) throw std::runtime_error(where + ": its bytes are not in " + shown(name));
}

// Such as 8.9 or 8.0+.
bool is_capability(std::string_view text) {
    if (!text.empty() && text.back() == '+') text.remove_suffix(1);
    const std::size_t point = std::min(text.find('.'), text.size());
    const auto digits = [](std::string_view part, std::size_t most) {
        return !part.empty() && part.size() <= most && part.find_first_not_of("0123456789") == std::string_view::npos;
    };
    return point < text.size() && digits(text.substr(0, point), 3) && digits(text.substr(point + 1), 2);
}

void check_engine(const Json& engine) {
    for (const auto& [symbol, span] : engine.at("profile").items()) {
        const auto number = [&sizes = span](std::size_t i) { return sizes[i].get<std::int64_t>(); };
        if (span.size() != 3 || number(0) <= 0 || number(1) < number(0) || number(2) < number(1) || number(2) >= HIGH)
            throw std::runtime_error("engines: the profile of " + shown(symbol, 40) +
                                     " is not 3 rising numbers above 0");
    }
    for (const Json& capability : engine.at("compute_capabilities"))
        if (!is_capability(capability.get_ref<const std::string&>()))
            throw std::runtime_error("engines: the compute capability " +
                                     shown(capability.get_ref<const std::string&>(), 40) +
                                     " has not a form such as 8.9 or 8.0+");
}

void check_quantization(const Manifest& manifest, const Json& quantized) {
    const auto fault = [](const std::string& key, const std::string& what) {
        throw std::runtime_error("recipe.quantization." + key + " " + what);
    };
    const auto one_of = [&](const char* key, std::initializer_list<const char*> known) {
        if (std::none_of(known.begin(), known.end(), [&](const char* name) { return quantized.at(key) == name; }))
            fault(key, "has an unknown value");
    };
    one_of("to", {"int8", "fp8", "int8-weights"});
    one_of("target", {"openvino", "onnxruntime", "tensorrt"});
    const auto within = [&](const char* key, double least, double most) {
        const double value = quantized.at(key);
        if (!(least <= value && value <= most)) fault(key, "is out of range");
    };
    within("level", 1, 3);
    within("prompts", 0, static_cast<double>(HIGH));
    for (const char* key : {"gate_mean", "gate_worst", "error_mean", "error_worst", "psnr"}) within(key, 0, 1000);
    for (const Json& graph : quantized.at("graphs"))
        if (!manifest.graphs.count(graph.get<std::string>())) fault("graphs", "has one that is not in graphs");
    for (const char* key : {"report", "calibration"}) {
        const Json& file = quantized.at(key);
        if (file.is_string() && !manifest.files.count(file.get<std::string>()))
            fault(key, "is a file that files does not list");
    }
}

}  // namespace

void check_unused(const Manifest& manifest, const Json& json) {
    const Json& recipe = json.at("recipe");
    if (recipe.contains("quantization") && !recipe.at("quantization").is_null())
        check_quantization(manifest, recipe.at("quantization"));
    for (const auto& [parameter, uses] : json.at("weights").items())
        for (const Json& use : uses) check_weight(manifest, "weights." + shown(parameter, 100), use);
    for (const Json& engine : json.at("engines")) check_engine(engine);
}

}  // namespace lrt
