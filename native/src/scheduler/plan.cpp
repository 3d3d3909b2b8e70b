#include "plan.hpp"

#include "../base/error.hpp"
#include "../base/json.hpp"
#include "../base/numbers.hpp"
#include "../base/utf8.hpp"

#include <algorithm>
#include <initializer_list>
#include <string>

namespace lrt {

namespace {

constexpr std::size_t ROWS = static_cast<std::size_t>(REGISTERS);
constexpr const char* FORMAT = "latentrt.plan/1";

void require_floats(const char* name, const std::vector<float>& values, std::size_t expected) {
    if (values.size() != expected)
        throw scheduler_error(std::string(name) + " of a plan has " + std::to_string(values.size()) +
                              " values; expected " + std::to_string(expected));
    if (!all_finite(values.data(), values.size()))
        throw scheduler_error(std::string(name) + " of a plan contains NaN or infinity");
}

float float_from(const Json& json) {
    if (json.is_boolean()) return json.get<bool>() ? 1.0F : 0.0F;
    if (!json.is_number()) throw scheduler_error("the plan contains a value that is not a number");
    const auto value = json.get<double>();
    // From here on, the nearest float32 is infinity.
    if (!(std::fabs(value) < 0x1.ffffffp127)) throw scheduler_error("the plan contains NaN or infinity");
    return static_cast<float>(value);
}

// Appends nested lists of these sizes.
void append(const Json& json, const std::string& name, const std::size_t* sizes, std::size_t depth,
            std::vector<float>& values) {
    if (depth == 0) return values.push_back(float_from(json));
    if (!json.is_array() || json.size() != *sizes)
        throw scheduler_error(name + " of a plan has " + (json.is_array() ? std::to_string(json.size()) : "no") +
                              " entries in a list; expected " + std::to_string(*sizes));
    for (const Json& entry : json) append(entry, name, sizes + 1, depth - 1, values);
}

std::vector<float> floats_from(const Json& document, const char* name, std::initializer_list<std::size_t> sizes) {
    const auto found = document.find(name);
    if (found == document.end()) throw scheduler_error(std::string("the plan is missing '") + name + "'");
    std::vector<float> values;
    append(*found, name, sizes.begin(), sizes.size(), values);
    return values;
}

void require_format(const Json& document) {
    if (!document.is_object()) throw scheduler_error("a plan's document is a JSON object");
    const auto format = document.find("format");
    if (format == document.end() || *format != FORMAT)
        throw scheduler_error(
            std::string("the plan's format is ") +
            (format != document.end() && format->is_string() ? shown(format->get<std::string>()) : "missing") +
            ": this library reads '" + FORMAT + "'");
}

Json parsed(std::string_view text) {
    try {
        return json_from(text);
    } catch (const std::runtime_error& error) {
        throw scheduler_error(std::string("the plan is not valid JSON: ") + error.what());
    }
}

}  // namespace

std::size_t Plan::draw_count() const {
    return static_cast<std::size_t>(std::count(draws.begin(), draws.end(), std::uint8_t{1}));
}

bool Plan::starts_clean() const {
    for (std::size_t row = 0; 2 * row + 1 < initial.size(); ++row)
        if (initial[2 * row + 1] != 0) return true;
    return false;
}

bool Plan::starts_noisy() const {
    for (std::size_t row = 0; 2 * row < initial.size(); ++row)
        if (initial[2 * row] != 0) return true;
    return false;
}

bool Plan::is_plus_plus() const {
    for (std::size_t call = 0; 2 * call + 1 < guidance.size(); ++call)
        if (guidance[2 * call] != 0 || guidance[2 * call + 1] != 1) return true;
    return false;
}

void Plan::check() {
    if (calls() == 0) throw scheduler_error("a plan has no calls");
    if (guidance.empty()) {
        for (std::size_t call = 0; call < calls(); ++call) guidance.insert(guidance.end(), {0.0F, 1.0F});
    }
    require_floats("timesteps", timesteps, calls());
    require_floats("coefficients", coefficients, calls() * ROWS * (ROWS + 2));
    require_floats("initial", initial, ROWS * 2);
    require_floats("noise_levels", noise_levels, (calls() + 1) * 2);
    require_floats("blend", blend, calls() * 2);
    require_floats("guidance", guidance, calls() * 2);
    if (draws.size() != calls())
        throw scheduler_error("draws of a plan has " + std::to_string(draws.size()) + " values; expected " +
                              std::to_string(calls()));
    // Those that are counted are those that are drawn.
    for (std::uint8_t& draw : draws) draw = draw != 0;
}

Plan plan_from_document(std::string_view json, std::string* prediction_type) {
    const Json document = parsed(json);
    require_format(document);
    const auto times = document.find("timesteps");
    const std::size_t calls = times != document.end() && times->is_array() ? times->size() : 0;
    if (calls == 0) throw scheduler_error("the plan has no timesteps");
    Plan plan;
    plan.timesteps = floats_from(document, "timesteps", {calls});
    plan.coefficients = floats_from(document, "coefficients", {calls, ROWS, ROWS + 2});
    plan.initial = floats_from(document, "initial", {ROWS, 2});
    plan.noise_levels = floats_from(document, "noise_levels", {calls + 1, 2});
    plan.blend = floats_from(document, "blend", {calls, 2});
    if (document.contains("guidance")) plan.guidance = floats_from(document, "guidance", {calls, 2});
    for (const float value : floats_from(document, "draws", {calls}))
        plan.draws.push_back(static_cast<std::uint8_t>(value != 0));
    plan.check();
    const auto config = document.find("scheduler_config");
    if (prediction_type != nullptr && config != document.end() && config->is_object()) {
        const auto type = config->find("prediction_type");
        if (type != config->end() && type->is_string()) *prediction_type = type->get<std::string>();
    }
    return plan;
}

}  // namespace lrt
