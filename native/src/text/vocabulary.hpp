// Tokens by name, in two blocks of memory: a vocabulary is only needed while a tokenizer is read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace lrt {

class Vocabulary {
  public:
    void add(std::string_view token, std::uint32_t id);
    // To be called before the first search. Throws std::runtime_error for tokens or ids that occur twice.
    void finish();

    std::size_t size() const { return rows_.size(); }
    std::optional<std::uint32_t> find(std::string_view token) const;

  private:
    struct Row {
        std::uint64_t hash;
        std::uint32_t at, size, id;
    };
    std::string_view name(const Row& row) const { return std::string_view(names_).substr(row.at, row.size); }
    void check_ids() const;

    std::string names_;
    std::vector<Row> rows_;              // sorted by hash
    std::vector<std::uint32_t> begins_;  // of rows whose hashes begin with the same bits
};

}  // namespace lrt
