// One file of plans: its index, and which of its plans a scheduler, a number of steps and a strength mean.
#pragma once

#include "../base/json.hpp"
#include "pack_tables.hpp"

#include <map>
#include <optional>
#include <string>
#include <vector>

namespace lrt {

struct PackedScheduler {
    std::vector<std::string> names;
    // Names of web UIs in lower case, which any case matches; and whether the one in lower case does.
    std::map<std::string, bool> labels;
    // Numbers of steps, rising. For each, how many starts there are, and where its plans begin: the one from noise,
    // those of the starts, then those of `original_inference_steps`.
    std::vector<std::int64_t> steps, starts;
    std::vector<std::size_t> first_plans;
    // For image-to-image with distilled models.
    std::optional<std::int64_t> original_inference_steps;

    // Index of a number of steps.
    std::optional<std::size_t> at(std::int64_t count) const;
};

struct PlanPack {
    std::vector<PackedScheduler> schedulers;
    PackTables tables;
};

// Reads a file. Throws std::runtime_error with what is wrong, without the file's name; also where the noise that its
// schedulers were trained with is not that of `config`, the checkpoint's scheduler_config.json or an empty object.
PlanPack plan_pack_from(std::string_view bytes, const std::string& prediction_type, const Json& config);

}  // namespace lrt
