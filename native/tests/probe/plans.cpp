// Plans and plan packs. Errors are texts in `error`, which holds 4096 bytes; functions then return null or 0.
#include "../../src/base/error.hpp"
#include "../../src/scheduler/plan_packs.hpp"

#include <cstring>

#define EXPORTED extern "C" __attribute__((visibility("default")))

namespace {

void tell(char* error, const std::string& text) {
    const std::size_t length = text.size() < 4095 ? text.size() : 4095;
    std::memcpy(error, text.data(), length);
    error[length] = 0;
}

template <typename Work>
auto told(char* error, Work work) -> decltype(work()) {
    error[0] = 0;
    try {
        return work();
    } catch (const lrt::Error& failure) {
        tell(error, std::to_string(failure.status()) + " " + failure.what());
    } catch (const std::exception& failure) {
        tell(error, std::string("another exception: ") + failure.what());
    }
    return {};
}

}  // namespace

EXPORTED lrt::PlanPacks* packs_new() { return new lrt::PlanPacks; }
EXPORTED void packs_free(lrt::PlanPacks* packs) { delete packs; }

EXPORTED int packs_add(lrt::PlanPacks* packs, const char* file, const char* prediction_type, char* error) {
    return told(error, [&] {
        packs->add(file, prediction_type);
        return 1;
    });
}

EXPORTED std::size_t packs_names(const lrt::PlanPacks* packs) { return packs->names().size(); }
EXPORTED const char* packs_name(const lrt::PlanPacks* packs, std::size_t index) { return packs->names()[index].c_str(); }

// A strength below 0 is none; NaN and others are handed on.
EXPORTED lrt::Plan* packs_find(const lrt::PlanPacks* packs, const char* scheduler, std::size_t length,
                               std::int64_t steps, const double* strength, int distilled_image, char* error) {
    return told(error, [&] {
        const std::optional<double> given = strength == nullptr ? std::nullopt : std::optional<double>(*strength);
        return new lrt::Plan(packs->find({scheduler, length}, steps, given, distilled_image != 0));
    });
}

EXPORTED lrt::Plan* plan_read(const char* json, std::size_t length, char* prediction_type, char* error) {
    return told(error, [&] {
        std::string type;
        auto* plan = new lrt::Plan(lrt::plan_from_document({json, length}, &type));
        tell(prediction_type, type);
        return plan;
    });
}

EXPORTED void plan_free(lrt::Plan* plan) { delete plan; }

EXPORTED std::size_t plan_facts(const lrt::Plan* plan, int* starts_clean, int* is_plus_plus, std::size_t* draws) {
    *starts_clean = plan->starts_clean();
    *is_plus_plus = plan->is_plus_plus();
    *draws = plan->draw_count();
    return plan->calls();
}

// One of the arrays, by its place in Python's dataclass; `draws` (3) as bytes.
EXPORTED std::size_t plan_array(const lrt::Plan* plan, int which, const void** values) {
    const std::vector<float>* arrays[] = {&plan->timesteps, &plan->coefficients, &plan->initial, nullptr,
                                          &plan->noise_levels, &plan->blend,     &plan->guidance};
    if (which == 3) {
        *values = plan->draws.data();
        return plan->draws.size();
    }
    *values = arrays[which]->data();
    return arrays[which]->size();
}
