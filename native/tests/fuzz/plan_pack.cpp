// A plan pack: refused with the reason, or all its plans can be read. The input is the index, NUL, and the tables; the
// header with its check sum, which no mutation would get right, is added.
#include "../../src/base/error.hpp"
#include "../../src/scheduler/plan_pack.hpp"

#include <cstdint>
#include <cstdlib>
#include <stdexcept>

namespace {

void append(std::string& to, std::uint32_t number) {
    for (int byte = 0; byte < 4; ++byte) to += static_cast<char>(number >> 8 * byte & 0xFF);
}

std::string packed(std::string_view index, std::string_view data) {
    const std::string content = std::string(index) + std::string(data);
    std::uint32_t crc = 0xFFFFFFFF;
    for (const char letter : content) {
        crc ^= static_cast<unsigned char>(letter);
        for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc % 2 == 1 ? 0xEDB88320 : 0);
    }
    std::string pack = "LRTPLANS";
    for (const std::size_t number : {std::size_t{1}, std::size_t{~crc}, index.size(), data.size()})
        append(pack, static_cast<std::uint32_t>(number));
    return pack + content;
}

void read_all(const lrt::PlanPack& pack) {
    std::size_t calls = 0;
    for (const lrt::PackedScheduler& scheduler : pack.schedulers)
        for (const std::size_t first : scheduler.first_plans) {
            if (calls > 100'000) return;
            try {
                if (const auto plan = pack.tables.plan(first)) calls += plan->calls();
            } catch (const lrt::Error& error) {  // values that are not finite
                if (error.status() != LATENTRT_SCHEDULER) std::abort();
            }
        }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const std::string_view bytes(reinterpret_cast<const char*>(data), size);
    const std::size_t end = bytes.find('\0');
    const std::string_view index = bytes.substr(0, end);
    const std::string_view tables = end == std::string_view::npos ? std::string_view() : bytes.substr(end + 1);
    for (const std::string& pack : {std::string(bytes), packed(index, tables)}) {
        try {
            read_all(lrt::plan_pack_from(pack, "epsilon"));
        } catch (const std::runtime_error&) {
        }
    }
    return 0;
}
