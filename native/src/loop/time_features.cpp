#include "time_features.hpp"

#include "../base/error.hpp"

#include <algorithm>
#include <cstring>

namespace lrt {

namespace {

constexpr std::size_t KEPT = 32;

template <typename T>
void append(std::string& key, const std::vector<T>& values) {
    key.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
}

// All that the features depend on.
std::string key_of(const Trajectory& trajectory) {
    std::string key = std::to_string(trajectory.context.rows()) + " " + std::to_string(trajectory.plan->calls()) + " ";
    append(key, trajectory.plan->timesteps);
    for (const auto& [name, array] : trajectory.time_inputs) {
        key += name + " " + std::to_string(array.values.size()) + " ";
        append(key, array.values);
    }
    return key;
}

}  // namespace

std::shared_ptr<const Features> TimeFeatures::of(const Trajectory& trajectory) {
    const std::string key = key_of(trajectory);
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        const auto found =
            std::find_if(kept_.begin(), kept_.end(), [&](const auto& kept) { return kept.first == key; });
        if (found != kept_.end()) {
            kept_.splice(kept_.begin(), kept_, found);
            return found->second;
        }
    }
    auto features = computed(trajectory);
    const std::lock_guard<std::mutex> lock(mutex_);
    kept_.emplace_front(key, features);
    if (kept_.size() > KEPT) kept_.pop_back();
    return features;
}

std::shared_ptr<const Features> TimeFeatures::computed(const Trajectory& trajectory) const {
    const Plan& plan = *trajectory.plan;
    const auto groups = static_cast<std::size_t>(trajectory.context.rows()), rows = plan.calls() * groups;
    Floats timesteps(Shape{static_cast<std::int64_t>(rows)});
    for (std::size_t row = 0; row < rows; ++row) timesteps.values[row] = plan.timesteps[row / groups];
    std::vector<Floats> tiled;
    for (const auto& [name, array] : trajectory.time_inputs) {
        tiled.emplace_back(Shape{static_cast<std::int64_t>(rows), array.shape[1]});
        for (std::size_t call = 0; call < plan.calls(); ++call)
            std::copy(array.values.begin(), array.values.end(), tiled.back().row(call * groups));
    }
    const Session& session = engines_.get("time");
    std::vector<Value> values;
    values.push_back(Value::over(session.library(), timesteps));
    for (const Floats& array : tiled) values.push_back(Value::over(session.library(), array));
    std::vector<std::pair<std::string, const Value*>> inputs{{"timesteps", &values[0]}};
    for (std::size_t i = 0; i < tiled.size(); ++i) inputs.emplace_back(trajectory.time_inputs[i].first, &values[i + 1]);
    const std::vector<Value> outputs = session.run(inputs);

    std::size_t index = 0;  // that it is there was checked when the bundle was opened
    while (session.spec().outputs[index].name != "time_features") ++index;
    const Value& output = outputs[index];
    if (output.shape().front() != static_cast<std::int64_t>(rows))
        throw backend_error(session.spec().file + " returned another number of rows than of timesteps");
    auto features = std::make_shared<Features>();
    const auto* from = static_cast<const std::byte*>(output.data());
    features->bytes.assign(from, from + output.bytes());
    features->row_bytes = features->bytes.size() / rows;
    return features;
}

}  // namespace lrt
