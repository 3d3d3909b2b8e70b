#include "plan_packs.hpp"

#include "../base/error.hpp"
#include "../base/numbers.hpp"
#include "../base/utf8.hpp"
#include "plan_pack.hpp"

#include <algorithm>
#include <utility>

namespace lrt {

struct PlanPacks::Content {
    std::vector<PlanPack> packs;
    std::vector<std::string> names;
};

namespace {

constexpr std::size_t MOST = std::size_t{1} << 28;  // bytes of a pack

// A scheduler in one of the packs, and the index of the wanted number of steps.
struct Entry {
    const PlanPack* pack;
    const PackedScheduler* scheduler;
    std::size_t at;
};

// Python's str.strip and str.lower, as far as names of samplers go: they are ASCII.
std::string label_of(const std::string& name) {
    constexpr const char* SPACES = " \t\n\v\f\r\x1c\x1d\x1e\x1f";
    const std::size_t first = name.find_first_not_of(SPACES);
    if (first == std::string::npos) return "";
    std::string label = name.substr(first, name.find_last_not_of(SPACES) - first + 1);
    for (char& letter : label)
        if (letter >= 'A' && letter <= 'Z') letter = static_cast<char>(letter - 'A' + 'a');
    return label;
}

bool has_name(const PackedScheduler& scheduler, const std::string& name) {
    return std::find(scheduler.names.begin(), scheduler.names.end(), name) != scheduler.names.end();
}

bool has_label(const PackedScheduler& scheduler, const std::string& name) {
    const std::string label = label_of(name);
    const auto found = scheduler.labels.find(label);
    return found != scheduler.labels.end() && (found->second || label != name);
}

// The schedulers of a name; those of a web UI's name only where no pack has the name as it stands.
std::vector<Entry> entries_of(const std::vector<PlanPack>& packs, const std::string& name) {
    std::vector<Entry> entries;
    for (const auto matches : {has_name, has_label}) {
        for (const PlanPack& pack : packs)
            for (const PackedScheduler& scheduler : pack.schedulers)
                if (matches(scheduler, name)) entries.push_back({&pack, &scheduler, 0});
        if (!entries.empty()) break;
    }
    return entries;
}

// A name for a command line.
std::string quoted(const std::string& name) {
    constexpr const char* PLAIN = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+-:=.,";
    if (name.size() > 80 || !decoded(name)) return "NAME";
    if (!name.empty() && name[0] != '-' && name.find_first_not_of(PLAIN) == std::string::npos) return name;
    std::string text = "'";
    for (const char letter : name) text += letter == '\'' ? std::string("'\\''") : std::string(1, letter);
    return text + "'";
}

std::string command(const std::string& name, std::int64_t steps) {
    return "latentrt plans BUNDLE --scheduler " + quoted(name) + " --steps " + std::to_string(steps);
}

std::string called(const std::string& name) { return name.empty() ? "the checkpoint's own scheduler" : shown(name); }

// Such as 1-4, 9.
std::string ranges(std::vector<std::int64_t> numbers) {
    std::sort(numbers.begin(), numbers.end());
    numbers.erase(std::unique(numbers.begin(), numbers.end()), numbers.end());
    std::string text;
    for (std::size_t i = 0; i < numbers.size() && text.size() < 200;) {
        std::size_t last = i;
        while (last + 1 < numbers.size() && numbers[last + 1] == numbers[last] + 1) ++last;
        text += (i == 0 ? "" : ", ") + std::to_string(numbers[i]);
        if (last > i) text += "-" + std::to_string(numbers[last]);
        i = last + 1;
    }
    return text;
}

Error unknown_scheduler(const std::vector<std::string>& names, const std::string& name, std::int64_t steps) {
    std::string known;
    for (const std::string& each : names) {
        if (known.size() > 500) break;
        if (!each.empty()) known += (known.empty() ? "" : ", ") + shown(each);
    }
    return scheduler_error("there are no plans of " + called(name) + ": " +
                           (known.empty() ? "this bundle has none at all" : "there are those of " + known) +
                           ". Write them with: " + command(name, steps));
}

Error unknown_steps(const std::vector<Entry>& entries, const std::string& name, std::int64_t steps) {
    std::vector<std::int64_t> known;
    for (const Entry& entry : entries)
        known.insert(known.end(), entry.scheduler->steps.begin(), entry.scheduler->steps.end());
    return scheduler_error("there is no plan of " + called(name) + " with " + std::to_string(steps) +
                           " steps: there are those with " + ranges(std::move(known)) +
                           ". Write it with: " + command(name, steps));
}

// How many of `whole` steps a strength leaves; the product in double, as in Python.
std::int64_t left_of(std::int64_t whole, double strength) {
    return std::min(static_cast<std::int64_t>(static_cast<double>(whole) * strength), whole);
}

// Index of the plan, in the tables of the entry's pack.
std::size_t index_of(const Entry& entry, std::int64_t steps, std::optional<double> strength, bool distilled_image) {
    const PackedScheduler& scheduler = *entry.scheduler;
    const std::size_t first = scheduler.first_plans[entry.at];
    const std::int64_t starts = scheduler.starts[entry.at];
    if (!strength) return first;
    if (distilled_image && scheduler.original_inference_steps) {
        const std::int64_t left = left_of(*scheduler.original_inference_steps, *strength);
        if (steps > left)
            throw input_error("num_inference_steps=" + std::to_string(steps) + ": expected at most " +
                              std::to_string(left) + " at strength=" + general(*strength));
        return first + static_cast<std::size_t>(1 + starts + left - steps);
    }
    const std::int64_t kept = left_of(starts, *strength);
    if (kept == 0)
        throw scheduler_error("strength=" + repr(*strength) + " leaves none of " + std::to_string(starts) +
                              " steps: raise num_inference_steps or widen the range");
    return first + static_cast<std::size_t>(kept);
}

}  // namespace

PlanPacks::PlanPacks() : content_(std::make_unique<Content>()) {}
PlanPacks::~PlanPacks() = default;
PlanPacks::PlanPacks(PlanPacks&&) noexcept = default;
PlanPacks& PlanPacks::operator=(PlanPacks&&) noexcept = default;

void PlanPacks::add(const std::filesystem::path& file, const std::string& prediction_type, const Json& config) {
    try {
        content_->packs.push_back(plan_pack_from(bytes_of(file, MOST), prediction_type, config));
    } catch (const std::runtime_error& error) {
        throw bundle_error(file.string() + " cannot be used as a plan pack: " + error.what() +
                           ". Write one with: latentrt plans BUNDLE");
    }
    std::vector<std::string>& names = content_->names;
    for (const PackedScheduler& scheduler : content_->packs.back().schedulers)
        for (const std::string& name : scheduler.names)
            if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
}

const std::vector<std::string>& PlanPacks::names() const { return content_->names; }

Plan PlanPacks::find(const std::string& scheduler, std::int64_t steps, std::optional<double> strength,
                     bool distilled_image) const {
    if (strength && !(*strength > 0 && *strength <= 1))
        throw scheduler_error("strength=" + repr(*strength) + ": expected > 0 (keep the image) and <= 1 (redraw it)");
    const std::vector<Entry> named = entries_of(content_->packs, scheduler);
    if (named.empty()) throw unknown_scheduler(content_->names, scheduler, steps);
    bool only_from_noise = false;
    for (Entry entry : named) {
        const std::optional<std::size_t> at = entry.scheduler->at(steps);
        if (!at) continue;
        entry.at = *at;
        only_from_noise = strength && entry.scheduler->starts[*at] == 0;
        if (only_from_noise) continue;
        if (std::optional<Plan> plan = entry.pack->tables.plan(index_of(entry, steps, strength, distilled_image)))
            return *std::move(plan);
        throw scheduler_error(called(scheduler) + " cannot do " + std::to_string(steps) + " steps" +
                              (strength ? " at strength=" + general(*strength) : "") + ": choose others");
    }
    if (only_from_noise)
        throw scheduler_error(
            "the plans of " + called(scheduler) + " with " + std::to_string(steps) +
            " steps begin from noise, not from an image. Write others with: " + command(scheduler, steps));
    throw unknown_steps(named, scheduler, steps);
}

}  // namespace lrt
