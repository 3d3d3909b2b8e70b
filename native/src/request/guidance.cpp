#include "guidance.hpp"

#include "../base/error.hpp"
#include "../base/numbers.hpp"

namespace lrt {

bool is_guided(double scale, bool plus_plus, bool distilled) { return scale > (plus_plus ? 0 : 1) && !distilled; }

Floats guidance_weights(double scale, const Plan& plan, double start, double end) {
    const std::size_t calls = plan.calls();
    const auto first = static_cast<std::size_t>(start * static_cast<double>(calls));
    const auto last = static_cast<std::size_t>(end * static_cast<double>(calls));
    Floats weights({static_cast<std::int64_t>(calls), 2});
    for (std::size_t call = 0; call < calls; ++call) {
        const double base = plan.guidance[2 * call], slope = plan.guidance[2 * call + 1];
        const bool on = first <= call && call < last;
        const double strength = on ? base + slope * scale : 1;
        weights.values[2 * call] = static_cast<float>(1 - strength);
        weights.values[2 * call + 1] = static_cast<float>(strength);
    }
    return weights;
}

void check_interval(double start, double end) {
    if (start >= end)
        throw input_error("guidance_start=" + general(start) + ", guidance_end=" + general(end) +
                          ": expected guidance_start < guidance_end");
}

void check_plus_plus(double guidance_rescale, bool distilled) {
    if (distilled)
        throw input_error("CFG++ adds noise back by the unguided prediction, which this distilled model does not make");
    if (guidance_rescale != 0)
        throw input_error(
            "guidance_rescale with CFG++: the guided prediction of a call is not what the paper "
            "rescales; leave it out");
}

}  // namespace lrt
