// Tables of characters, sorted.
#pragma once

#include <algorithm>
#include <cstddef>

namespace lrt {

// Rows that are part of the program.
template <typename Row>
class Table {
  public:
    template <std::size_t N>
    constexpr explicit Table(const Row (&rows)[N]) : first_(rows), last_(rows + N) {}

    constexpr const Row* begin() const { return first_; }
    constexpr const Row* end() const { return last_; }
    constexpr const Row& operator[](std::size_t index) const { return first_[index]; }

  private:
    const Row *first_, *last_;
};

// Characters from the first to the last one.
struct Range {
    char32_t first, last;
};

// The row, of any with `first` and `last`, that a character is in, or null.
template <typename Row>
const Row* row_of(const Table<Row>& table, char32_t point) {
    const Row* found = std::lower_bound(table.begin(), table.end(), point,
                                        [](const Row& row, char32_t value) { return row.last < value; });
    return found != table.end() && found->first <= point ? found : nullptr;
}

inline bool contains(const Table<Range>& table, char32_t point) { return row_of(table, point) != nullptr; }

}  // namespace lrt
