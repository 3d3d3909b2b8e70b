#include "pack_tables.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace lrt {

namespace {

constexpr std::size_t R = static_cast<std::size_t>(REGISTERS), COEFFICIENTS = R * (R + 2);
// A call: timestep, noise level after it, blend, guidance, coefficients. A start: initial, noise level before it.
constexpr std::size_t CALL_FLOATS = 1 + 2 + 2 + 2 + COEFFICIENTS, START_FLOATS = 2 * R + 2;
constexpr unsigned char ONE = 1, NEXT = 2, AGAIN = 3;  // codes of a pattern; 0 is zero
constexpr std::size_t MOST_CALLS = 1 << 16;            // of one plan

void require(bool holds, const char* otherwise) {
    if (!holds) throw std::runtime_error(otherwise);
}

std::uint32_t little_endian(const char* bytes, std::size_t count) {
    std::uint32_t value = 0;
    for (std::size_t i = count; i-- > 0;) value = value << 8 | static_cast<unsigned char>(bytes[i]);
    return value;
}

}  // namespace

PackTables::PackTables(std::string data, const TableSizes& sizes)
    : data_(std::move(data)),
      sizes_(sizes),
      calls_{sizes.calls, sizes.call_patterns, 1, CALL_FLOATS},
      starts_{sizes.starts, sizes.start_patterns, 0, START_FLOATS} {
    require(laid_out() == data_.size(), "its tables have other sizes than its index says");
    require(take(starts_, take(calls_, 0)) == sizes_.values, "its rows use other values than there are");
    check_plans();
}

// Sets where each table begins; the end of the last one.
std::size_t PackTables::laid_out() {
    nodes_at_ = std::size_t{4} * sizes_.values;
    plans_at_ = nodes_at_ + std::size_t{8} * sizes_.nodes;
    calls_.uses_at = plans_at_ + std::size_t{8} * sizes_.plans;
    starts_.uses_at = calls_.uses_at + 2 * calls_.count;
    calls_.patterns_at = starts_.uses_at + 2 * starts_.count;
    starts_.patterns_at = calls_.patterns_at + calls_.patterns * calls_.stride();
    return starts_.patterns_at + starts_.patterns * starts_.stride();
}

std::uint32_t PackTables::number(std::size_t at, std::size_t index) const {
    return little_endian(data_.data() + at + 4 * index, 4);
}

// The number of values that each pattern takes.
std::vector<std::uint32_t> PackTables::checked_patterns(const Records& records) const {
    std::vector<std::uint32_t> takes;
    for (std::size_t pattern = 0; pattern < records.patterns; ++pattern) {
        const char* codes = data_.data() + records.patterns_at + pattern * records.stride();
        std::uint32_t taken = 0;
        for (std::size_t i = 0; i < records.stride(); ++i) {
            const auto code = static_cast<unsigned char>(codes[i]);
            if (i < records.flags)
                require(code <= 1, "a pattern has an unknown flag");
            else
                require(code < AGAIN || code - AGAIN < static_cast<int>(taken), "a pattern repeats a later value");
            if (i >= records.flags && code == NEXT) ++taken;
        }
        takes.push_back(taken);
    }
    return takes;
}

// Notes the first value of each row; returns the one after the last.
std::uint64_t PackTables::take(Records& records, std::uint64_t first_value) const {
    const std::vector<std::uint32_t> takes = checked_patterns(records);
    records.first_values.reserve(records.count);
    for (std::size_t row = 0; row < records.count; ++row) {
        const std::uint32_t pattern = little_endian(data_.data() + records.uses_at + 2 * row, 2);
        require(pattern < takes.size(), "a row has a pattern that is not there");
        records.first_values.push_back(static_cast<std::uint32_t>(first_value));
        first_value += takes[pattern];
        require(first_value <= sizes_.values, "its rows use other values than there are");
    }
    return first_value;
}

// Every chain ends, as each node leads to one before it, and none is too long.
void PackTables::check_plans() const {
    std::vector<std::uint32_t> lengths;
    lengths.reserve(sizes_.nodes);
    for (std::size_t node = 0; node < sizes_.nodes; ++node) {
        const std::uint32_t call = number(nodes_at_, 2 * node), next = number(nodes_at_, 2 * node + 1);
        require(call < sizes_.calls && next <= node, "a node leads to what is not there");
        lengths.push_back(next == 0 ? 1 : lengths[next - 1] + 1);
    }
    for (std::size_t plan = 0; plan < sizes_.plans; ++plan) {
        const std::uint32_t start = number(plans_at_, 2 * plan), node = number(plans_at_, 2 * plan + 1);
        if (start == 0)
            require(node == 0, "a plan has calls and no start");
        else
            require(start <= sizes_.starts && node < sizes_.nodes && lengths[node] <= MOST_CALLS,
                    "a plan leads to what is not there");
    }
}

const char* PackTables::read(const Records& records, std::size_t row, float* floats) const {
    const std::uint32_t use = little_endian(data_.data() + records.uses_at + 2 * row, 2);
    const char* pattern = data_.data() + records.patterns_at + use * records.stride();
    const std::size_t first = records.first_values[row];
    std::size_t taken = 0;
    for (std::size_t i = 0; i < records.floats; ++i) {
        const auto code = static_cast<unsigned char>(pattern[records.flags + i]);
        floats[i] = code == ONE ? 1.0F : 0.0F;
        if (code < NEXT) continue;
        const std::uint32_t bits = number(0, first + (code == NEXT ? taken++ : std::size_t{code} - AGAIN));
        std::memcpy(floats + i, &bits, sizeof bits);
    }
    return pattern;
}

std::optional<Plan> PackTables::plan(std::size_t index) const {
    const std::uint32_t start = number(plans_at_, 2 * index);
    if (start == 0) return std::nullopt;
    Plan plan;
    const auto append = [](std::vector<float>& to, const float*& from, std::size_t count) {
        to.insert(to.end(), from, from + count);
        from += count;
    };
    float row[std::max(CALL_FLOATS, START_FLOATS)];
    read(starts_, start - 1, row);
    const float* at = row;
    append(plan.initial, at, 2 * R);
    append(plan.noise_levels, at, 2);
    for (std::uint32_t node = number(plans_at_, 2 * index + 1) + 1; node != 0;) {
        const char* pattern = read(calls_, number(nodes_at_, 2 * (node - std::size_t{1})), row);
        plan.draws.push_back(static_cast<std::uint8_t>(pattern[0]));
        at = row;
        append(plan.timesteps, at, 1);
        append(plan.noise_levels, at, 2);
        append(plan.blend, at, 2);
        append(plan.guidance, at, 2);
        append(plan.coefficients, at, COEFFICIENTS);
        node = number(nodes_at_, 2 * (node - std::size_t{1}) + 1);
    }
    plan.check();
    return plan;
}

}  // namespace lrt
