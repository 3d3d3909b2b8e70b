#include "plan_pack.hpp"

#include "../base/utf8.hpp"

#include <algorithm>
#include <array>
#include <initializer_list>
#include <limits>
#include <stdexcept>

namespace lrt {

namespace {

constexpr std::string_view MAGIC = "LRTPLANS";
constexpr std::size_t HEADER = 24;
constexpr std::uint32_t VERSION = 1;
constexpr const char* FORMAT = "latentrt.plans/1";
constexpr std::int64_t MOST_STEPS = 1 << 16;
constexpr std::uint32_t MOST_INDEX = 1 << 24;  // bytes; that of ten schedulers has 20 kB

void require(bool holds, const std::string& otherwise) {
    if (!holds) throw std::runtime_error(otherwise);
}

std::uint32_t number_at(std::string_view bytes, std::size_t at) {
    std::uint32_t value = 0;
    for (std::size_t i = 4; i-- > 0;) value = value << 8 | static_cast<unsigned char>(bytes[at + i]);
    return value;
}

// zlib's.
std::uint32_t crc32(std::string_view bytes) {
    std::array<std::uint32_t, 256> table{};
    for (std::uint32_t i = 0; i < 256; ++i) {
        table[i] = i;
        for (int bit = 0; bit < 8; ++bit) table[i] = table[i] >> 1 ^ (table[i] % 2 == 1 ? 0xEDB88320U : 0U);
    }
    std::uint32_t crc = 0xFFFFFFFFU;
    for (const char byte : bytes) crc = crc >> 8 ^ table[(crc ^ static_cast<unsigned char>(byte)) & 0xFFU];
    return ~crc;
}

void require_keys(const Json& json, const char* where, std::initializer_list<const char*> keys) {
    require(json.is_object(), std::string(where) + " is not an object");
    for (const char* key : keys) require(json.contains(key), std::string(where) + " is missing '" + key + "'");
    for (const auto& item : json.items()) {
        const bool known = std::any_of(keys.begin(), keys.end(), [&](const char* key) { return item.key() == key; });
        require(known, std::string(where) + " has an unknown key " + shown(item.key()));
    }
}

std::int64_t integer_from(const Json& json, const char* name, std::int64_t least, std::int64_t most) {
    const bool fits = json.is_number_integer() &&
                      (!json.is_number_unsigned() || json.get<std::uint64_t>() <= static_cast<std::uint64_t>(most));
    const std::int64_t value = fits ? json.get<std::int64_t>() : least - 1;
    require(value >= least && value <= most, std::string(name) + " of its index is no integer from " +
                                                 std::to_string(least) + " to " + std::to_string(most));
    return value;
}

std::vector<std::int64_t> integers_from(const Json& json, const char* name, std::int64_t least, std::int64_t most) {
    require(json.is_array(), std::string(name) + " of its index is not a list");
    std::vector<std::int64_t> values;
    for (const Json& value : json) values.push_back(integer_from(value, name, least, most));
    return values;
}

std::string text_from(const Json& json, const char* name) {
    require(json.is_string(), std::string(name) + " of its index is not a text");
    return json.get<std::string>();
}

TableSizes sizes_from(const Json& json) {
    require_keys(json, "tables of its index",
                 {"values", "nodes", "plans", "calls", "starts", "call_patterns", "start_patterns"});
    const auto size = [&](const char* name) {
        constexpr std::int64_t most = std::numeric_limits<std::uint32_t>::max() - 1;
        return static_cast<std::uint32_t>(integer_from(json.at(name), name, 0, most));
    };
    return {size("values"), size("nodes"),         size("plans"),         size("calls"),
            size("starts"), size("call_patterns"), size("start_patterns")};
}

void take_names(const Json& json, PackedScheduler& scheduler) {
    require(json.at("names").is_array(), "names of its index is not a list");
    for (const Json& name : json.at("names")) scheduler.names.push_back(text_from(name, "names"));
    require(!scheduler.names.empty(), "a scheduler of its index has no name");
    require(json.at("labels").is_object(), "labels of its index is not an object");
    for (const auto& [label, as_it_stands] : json.at("labels").items()) {
        require(as_it_stands.is_boolean(), "labels of its index has a value that is not true or false");
        scheduler.labels[label] = as_it_stands.get<bool>();
    }
}

// `first_plan` is where the plans of the next scheduler begin.
PackedScheduler scheduler_from(const Json& json, std::size_t& first_plan) {
    require_keys(json, "a scheduler of its index",
                 {"names", "labels", "config", "steps", "starts", "original_inference_steps"});
    PackedScheduler scheduler;
    take_names(json, scheduler);
    require(json.at("config").is_object(), "config of its index is not an object");
    scheduler.steps = integers_from(json.at("steps"), "steps", 1, MOST_STEPS);
    scheduler.starts = integers_from(json.at("starts"), "starts", 0, MOST_STEPS);
    require(!scheduler.steps.empty() && scheduler.steps.size() == scheduler.starts.size(),
            "a scheduler of its index has other steps than starts");
    require(std::adjacent_find(scheduler.steps.begin(), scheduler.steps.end(), std::greater_equal<>()) ==
                scheduler.steps.end(),
            "steps of its index do not rise");
    const Json& original = json.at("original_inference_steps");
    if (!original.is_null())
        scheduler.original_inference_steps = integer_from(original, "original_inference_steps", 1, MOST_STEPS);
    for (std::size_t i = 0; i < scheduler.steps.size(); ++i) {
        scheduler.first_plans.push_back(first_plan);
        const std::int64_t within = scheduler.original_inference_steps.value_or(0) - scheduler.steps[i] + 1;
        first_plan += static_cast<std::size_t>(1 + scheduler.starts[i] + std::max<std::int64_t>(within, 0));
    }
    return scheduler;
}

// The index and the data; throws where the header does not fit the file.
std::pair<std::string_view, std::string_view> parts_of(std::string_view bytes) {
    require(bytes.size() >= HEADER && bytes.substr(0, MAGIC.size()) == MAGIC, "it is no plan pack");
    const std::uint32_t version = number_at(bytes, 8);
    require(version == VERSION, "its version is " + std::to_string(version) + ": this library reads version 1");
    const std::uint64_t index = number_at(bytes, 16), data = number_at(bytes, 20);
    require(HEADER + index + data == bytes.size(),
            "it has " + std::to_string(bytes.size()) + " bytes instead of " + std::to_string(HEADER + index + data));
    require(index <= MOST_INDEX, "its index is too large");
    require(crc32(bytes.substr(HEADER)) == number_at(bytes, 12), "its check sum is wrong");
    const std::string_view content = bytes.substr(HEADER);
    return {content.substr(0, static_cast<std::size_t>(index)), content.substr(static_cast<std::size_t>(index))};
}

void require_model(const Json& index, const std::string& prediction_type) {
    require_keys(index, "its index", {"format", "prediction_type", "registers", "tables", "schedulers"});
    const std::string format = text_from(index.at("format"), "format");
    require(format == FORMAT, "its format is " + shown(format) + ": this library reads '" + FORMAT + "'");
    const std::string predicts = text_from(index.at("prediction_type"), "prediction_type");
    require(predicts == prediction_type,
            "it is for a model that predicts " + shown(predicts) + ", and this one predicts " + shown(prediction_type));
    const std::int64_t registers = integer_from(index.at("registers"), "registers", 1, 64);
    require(registers == REGISTERS, "its plans have " + std::to_string(registers) + " registers, and this library's " +
                                        std::to_string(REGISTERS));
}

// Packs of two checkpoints look alike, but for the noise that these were trained with. Options behind a name, as in
// euler:beta_schedule=linear, are somebody's choice.
void require_training(const Json& scheduler, const Json& config) {
    const std::string name = text_from(scheduler.at("names").at(0), "names");
    if (name.find(':') != std::string::npos) return;
    const Json& own = scheduler.at("config");
    for (const char* key : {"beta_start", "beta_end", "beta_schedule", "num_train_timesteps"})
        if (own.contains(key) && config.contains(key) && own.at(key) != config.at(key))
            throw std::runtime_error(std::string("it was written for another checkpoint: its ") + key + " is " +
                                     shown(own.at(key).dump(), 40) + ", and this one's " +
                                     shown(config.at(key).dump(), 40));
}

}  // namespace

std::optional<std::size_t> PackedScheduler::at(std::int64_t count) const {
    const auto found = std::lower_bound(steps.begin(), steps.end(), count);
    if (found == steps.end() || *found != count) return std::nullopt;
    return static_cast<std::size_t>(found - steps.begin());
}

PlanPack plan_pack_from(std::string_view bytes, const std::string& prediction_type, const Json& config) {
    const auto [text, data] = parts_of(bytes);
    const Json index = json_from(text);
    require_model(index, prediction_type);
    const TableSizes sizes = sizes_from(index.at("tables"));
    std::vector<PackedScheduler> schedulers;
    std::size_t plans = 0;
    require(index.at("schedulers").is_array(), "schedulers of its index is not a list");
    for (const Json& scheduler : index.at("schedulers")) {
        schedulers.push_back(scheduler_from(scheduler, plans));
        require_training(scheduler, config);
    }
    require(plans == sizes.plans, "its schedulers have other plans than there are");
    return {std::move(schedulers), PackTables(std::string(data), sizes)};
}

}  // namespace lrt
