// JSON as Python's json.dumps(…, ensure_ascii=False) writes it, to the byte.
#pragma once

#include "../scheduler/plan.hpp"

#include <string>
#include <string_view>

namespace lrt {

std::string json_text(std::string_view text);

// The plan's arrays as a document of the format latentrt.plan/1.
std::string json_text(const Plan& plan);

}  // namespace lrt
