// A scheduler as data: what `latentrt schedule NAME --steps N --bundle BUNDLE --json` writes, and the golden file holds.
#pragma once

#include "bundle.hpp"
#include "safetensors.hpp"

namespace latentrt {

struct Plan {
    std::vector<float> timesteps;       // (M,)
    std::vector<float> coefficients;    // (M, R, R + 2)
    std::vector<float> initial;         // (R, 2)
    std::vector<std::uint8_t> draws;    // (M,), not 0 where a call consumes noise
    std::vector<float> guidance;        // (M, 2), the scale of a call is [0] + [1] * scale; empty: the scale itself

    std::size_t calls() const { return timesteps.size(); }
    float scale_of(std::size_t call, float scale) const {
        return guidance.empty() ? scale : guidance[2 * call] + guidance[2 * call + 1] * scale;
    }
    // CFG++ guides each call by itself, from a scale of 0 on; otherwise there is no guidance up to 1.
    bool guides(float scale) const {
        for (std::size_t k = 0; k < guidance.size(); ++k)
            if (guidance[k] != float(k % 2)) return scale > 0;
        return scale > 1;
    }
};

inline void check_plan(const Plan& plan, const Bundle& bundle, const Path& file) {
    const std::size_t calls = plan.calls(), registers = std::size_t(bundle.registers);
    if (calls == 0 || plan.draws.size() != calls || plan.initial.size() != registers * 2 ||
        (!plan.guidance.empty() && plan.guidance.size() != calls * 2) ||
        plan.coefficients.size() != calls * registers * (registers + 2))
        throw Error(file.string() + " is no plan for " + std::to_string(registers) + " registers (initial has " +
                    std::to_string(plan.initial.size() / 2) + ", coefficients " +
                    std::to_string(plan.coefficients.size()) + " values for " + std::to_string(calls) +
                    " calls): write it with the latentrt that exported the bundle");
    for (std::size_t row = 0; row < registers; ++row)
        if (plan.initial[2 * row + 1] != 0)
            throw Error(file.string() + " begins from a picture; this example draws from noise alone");
}

// A list of lists of ... numbers, flat.
template <typename T>
void append_numbers(const Json& json, std::vector<T>& values) {
    if (!json.is_array()) return values.push_back(json.get<T>());
    for (const Json& entry : json) append_numbers(entry, values);
}

inline Plan plan_from_json(const Path& file, const Bundle& bundle) {
    return with_json(file, [&](const Json& json) {
        const std::string format = json.at("format");
        if (format != "latentrt.plan/1")
            throw Error(file.string() + " has the format " + format + "; this program reads latentrt.plan/1");
        const std::string predicts = json.at("scheduler_config").at("prediction_type");
        if (predicts != bundle.prediction_type)
            throw Error(file.string() + " is for a model with prediction type " + predicts + ", this one has " +
                        bundle.prediction_type + ": write the plan with --bundle");
        Plan plan;
        append_numbers(json.at("timesteps"), plan.timesteps);
        append_numbers(json.at("coefficients"), plan.coefficients);
        append_numbers(json.at("initial"), plan.initial);
        for (const Json& draws : json.at("draws")) plan.draws.push_back(draws.get<bool>());
        if (json.contains("guidance")) append_numbers(json.at("guidance"), plan.guidance);
        check_plan(plan, bundle, file);
        return plan;
    });
}

inline Plan plan_from_golden(const Safetensors& golden, const Bundle& bundle) {
    Plan plan{golden.values<float>("plan.timesteps", "F32"), golden.values<float>("plan.coefficients", "F32"),
              golden.values<float>("plan.initial", "F32"), golden.values<std::uint8_t>("plan.draws", "BOOL"),
              {}};  // goldens are never drawn with CFG++
    check_plan(plan, bundle, bundle.golden.file);
    return plan;
}

}  // namespace latentrt
