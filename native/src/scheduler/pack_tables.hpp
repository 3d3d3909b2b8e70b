// The tables of a plan pack: plans in which nothing is stored twice. engines/README.md specifies them under "Plan
// packs".
#pragma once

#include "plan.hpp"

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace lrt {

// Entries of each table; at most 32 bits each, so that sums of bytes do not overflow.
struct TableSizes {
    std::uint32_t values = 0, nodes = 0, plans = 0, calls = 0, starts = 0, call_patterns = 0, start_patterns = 0;
};

class PackTables {
  public:
    // `data` are the tables as they lie in the file. Throws std::runtime_error where they are damaged: once they are
    // taken, every plan can be read.
    PackTables(std::string data, const TableSizes& sizes);

    // Nothing where the pack says that there is no such plan. Throws Error for values that are not finite.
    std::optional<Plan> plan(std::size_t index) const;

  private:
    // Rows of floats, each with a pattern and values. Positions are bytes in `data_`, but for that of the first value.
    struct Records {
        std::size_t count, patterns, flags, floats;
        std::size_t uses_at = 0, patterns_at = 0;
        std::vector<std::uint32_t> first_values{};
        std::size_t stride() const { return flags + floats; }
    };

    std::size_t laid_out();
    std::vector<std::uint32_t> checked_patterns(const Records& records) const;
    std::uint64_t take(Records& records, std::uint64_t first_value) const;
    void check_plans() const;
    // Writes the floats of a row, and returns its pattern.
    const char* read(const Records& records, std::size_t row, float* floats) const;
    std::uint32_t number(std::size_t at, std::size_t index) const;

    std::string data_;
    TableSizes sizes_;
    Records calls_, starts_;
    std::size_t nodes_at_ = 0, plans_at_ = 0;
};

}  // namespace lrt
