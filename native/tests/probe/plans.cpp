// The room `scheduler`. Where a function fails, its text begins with the status.
#include "answer.hpp"

#include "../../src/base/error.hpp"
#include "../../src/scheduler/plan_packs.hpp"

#include <optional>
#include <stdexcept>

using namespace lrt;

namespace {

template <typename Work>
auto plan_or_null(char* error, Work work) -> decltype(work()) {
    decltype(work()) result = nullptr;
    probe::told(error, [&] {
        try {
            result = work();
        } catch (const Error& failure) {
            throw std::runtime_error(std::to_string(failure.status()) + " " + failure.what());
        }
    });
    return result;
}

}  // namespace

PROBE PlanPacks* packs_new() { return new PlanPacks; }
PROBE void packs_free(PlanPacks* packs) { delete packs; }

PROBE void packs_add(PlanPacks* packs, const char* file, const char* prediction_type, char* error) {
    plan_or_null(error, [&]() -> Plan* {
        packs->add(file, prediction_type);
        return nullptr;
    });
}

PROBE std::size_t packs_names(const PlanPacks* packs) { return packs->names().size(); }

PROBE std::size_t packs_name(const PlanPacks* packs, std::size_t index, char* out, std::size_t size) {
    return probe::put(packs->names().at(index), out, size);
}

// Without a strength where the pointer is null.
PROBE Plan* packs_find(const PlanPacks* packs, const char* scheduler, std::size_t length, std::int64_t steps,
                       const double* strength, int distilled_image, char* error) {
    return plan_or_null(error, [&] {
        const auto given = strength == nullptr ? std::nullopt : std::optional<double>(*strength);
        return new Plan(packs->find({scheduler, length}, steps, given, distilled_image != 0));
    });
}

PROBE Plan* plan_read(const char* json, std::size_t length, char* prediction_type, std::size_t size, char* error) {
    return plan_or_null(error, [&] {
        std::string type;
        const Plan plan = plan_from_document({json, length}, &type);
        probe::put(type, prediction_type, size);
        return new Plan(plan);
    });
}

PROBE void plan_free(Plan* plan) { delete plan; }

PROBE void plan_facts(const Plan* plan, std::size_t* facts) {
    facts[0] = plan->starts_clean();
    facts[1] = plan->is_plus_plus();
    facts[2] = plan->draw_count();
}

// The arrays in the order of Python's; `draws` has bytes, the others float32. Returns the number of entries.
PROBE std::size_t plan_array(const Plan* plan, std::size_t which, const void** values) {
    const std::vector<float>* arrays[] = {&plan->timesteps,    &plan->coefficients, &plan->initial, nullptr,
                                          &plan->noise_levels, &plan->blend,        &plan->guidance};
    if (which == 3) {
        *values = plan->draws.data();
        return plan->draws.size();
    }
    *values = arrays[which]->data();
    return arrays[which]->size();
}
