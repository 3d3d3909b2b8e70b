// A plan pack; where it begins as one, its sizes and check sum are set right, so that what they guard is reached.
#include "../../src/scheduler/plan_pack.hpp"
#include "../../src/base/utf8.hpp"
#include "input.hpp"

namespace {

std::uint32_t crc32(std::string_view bytes) {
    std::uint32_t crc = 0xFFFFFFFFU;
    for (const char byte : bytes) {
        crc ^= static_cast<unsigned char>(byte);
        for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc % 2 == 1 ? 0xEDB88320U : 0U);
    }
    return ~crc;
}

void put(std::string& bytes, std::size_t at, std::size_t number) {
    const auto value = static_cast<std::uint32_t>(number);
    std::memcpy(&bytes[at], &value, sizeof value);
}

// The index ends with the last brace in front of the first byte that is no text.
void set_right(std::string& pack) {
    const std::string_view content = std::string_view(pack).substr(24);
    const auto text = std::find_if(content.begin(), content.end(), [](char c) { return c >= 0 && c < 9; });
    const std::size_t index = content.substr(0, static_cast<std::size_t>(text - content.begin())).rfind('}') + 1;
    put(pack, 16, index);
    put(pack, 20, content.size() - index);
    put(pack, 12, crc32(content));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    std::string bytes(reinterpret_cast<const char*>(data), size);
    if (size >= 24 && bytes.rfind("LRTPLANS", 0) == 0) set_right(bytes);
    try {
        const lrt::PlanPack pack = lrt::plan_pack_from(bytes, "v_prediction", lrt::Json::object());
        for (const lrt::PackedScheduler& scheduler : pack.schedulers)
            for (std::size_t i = 0; i < scheduler.steps.size(); ++i) {
                fuzz::check(scheduler.at(scheduler.steps[i]) == i);
                const std::size_t first = scheduler.first_plans[i];
                for (std::int64_t start = 0; start <= std::min<std::int64_t>(scheduler.starts[i], 20); ++start) {
                    try {
                        pack.tables.plan(first + static_cast<std::size_t>(start));
                    } catch (const std::runtime_error&) {  // a value that is not finite
                    }
                }
            }
    } catch (const std::runtime_error& error) {
        fuzz::check(lrt::decoded(error.what()).has_value());
    }
    return 0;
}
