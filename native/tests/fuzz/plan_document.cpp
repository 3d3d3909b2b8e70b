// A document of the format latentrt.plan/1.
#include "../../src/base/error.hpp"
#include "../../src/base/utf8.hpp"
#include "../../src/scheduler/plan.hpp"
#include "input.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    try {
        std::string type;
        const lrt::Plan plan = lrt::plan_from_document({reinterpret_cast<const char*>(data), size}, &type);
        fuzz::check(plan.calls() > 0 && plan.draws.size() == plan.calls() && plan.draw_count() <= plan.calls());
        fuzz::check(plan.coefficients.size() == plan.calls() * 63 && plan.guidance.size() == plan.calls() * 2);
        plan.starts_clean();
        plan.is_plus_plus();
    } catch (const lrt::Error& error) {
        fuzz::check(error.status() == LATENTRT_SCHEDULER);
        fuzz::check(lrt::decoded(error.what()).has_value());
    }
    return 0;
}
