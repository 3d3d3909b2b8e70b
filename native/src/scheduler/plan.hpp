// A scheduler with its config and number of steps, compiled to a table. engines/README.md specifies it under "Plans".
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace lrt {

constexpr std::int64_t REGISTERS = 7;

// M model calls. Shapes: coefficients (M, R, R + 2), initial (R, 2), noise_levels (M + 1, 2), blend (M, 2),
// guidance (M, 2); draws is 1 for calls that consume a draw of unit noise.
struct Plan {
    std::vector<float> timesteps, coefficients, initial, noise_levels, blend, guidance;
    std::vector<std::uint8_t> draws;

    std::size_t calls() const { return timesteps.size(); }
    std::size_t draw_count() const;
    // Whether it begins from clean latents, not from noise alone.
    bool starts_clean() const;
    // Whether it begins from noise, too.
    bool starts_noisy() const;
    // Whether it sets the guidance of each call, as CFG++ does.
    bool is_plus_plus() const;
    // Throws where shapes do not fit R = 7 registers, or a value is not finite. An empty `guidance` becomes (0, 1).
    void check();
};

// A document of the format latentrt.plan/1; throws with what is wrong. `prediction_type` of the scheduler's config is
// put into the argument where the document has one.
Plan plan_from_document(std::string_view json, std::string* prediction_type = nullptr);

}  // namespace lrt
