// A document of a plan: refused as no plan, or one that the loop can run.
#include "../../src/base/error.hpp"
#include "../../src/scheduler/plan.hpp"

#include <cstdint>
#include <cstdlib>
#include <string>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    try {
        std::string predicts;
        const lrt::Plan plan = lrt::plan_from_document({reinterpret_cast<const char*>(data), size}, &predicts);
        if (plan.calls() == 0 || plan.coefficients.size() != plan.calls() * 63 || plan.draw_count() > plan.calls())
            std::abort();
    } catch (const lrt::Error& error) {
        if (error.status() != LATENTRT_SCHEDULER) std::abort();
    }
    return 0;
}
