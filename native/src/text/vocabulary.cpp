#include "vocabulary.hpp"

#include "../base/utf8.hpp"

#include <algorithm>
#include <stdexcept>

namespace lrt {

namespace {

constexpr std::uint64_t BASIS = 0xcbf29ce484222325, PRIME = 0x100000001b3;

constexpr std::size_t BUCKETS = std::size_t{1} << 16;

std::size_t bucket_of(std::uint64_t hash) { return static_cast<std::size_t>(hash >> 48); }

// FNV-1a. Rows are sorted by it, so names with equal hashes, made on purpose, cost no more than a longer search.
std::uint64_t hash_of(std::string_view text) {
    std::uint64_t hash = BASIS;
    for (const char c : text) hash = (hash ^ static_cast<std::uint8_t>(c)) * PRIME;
    return hash;
}

}  // namespace

void Vocabulary::add(std::string_view token, std::uint32_t id) {
    const auto at = static_cast<std::uint32_t>(names_.size());
    names_ += token;
    rows_.push_back({hash_of(token), at, static_cast<std::uint32_t>(token.size()), id});
}

void Vocabulary::finish() {
    std::sort(rows_.begin(), rows_.end(),
              [this](const Row& a, const Row& b) { return a.hash != b.hash ? a.hash < b.hash : name(a) < name(b); });
    const auto same = [this](const Row& a, const Row& b) { return a.hash == b.hash && name(a) == name(b); };
    const auto twice = std::adjacent_find(rows_.begin(), rows_.end(), same);
    if (twice != rows_.end()) throw std::runtime_error("the token " + shown(name(*twice), 40) + " occurs twice");
    check_ids();
    begins_.assign(BUCKETS + 1, 0);
    for (const Row& row : rows_) ++begins_[bucket_of(row.hash) + 1];
    for (std::size_t i = 1; i < begins_.size(); ++i) begins_[i] += begins_[i - 1];
}

void Vocabulary::check_ids() const {
    std::vector<std::uint32_t> ids;
    ids.reserve(rows_.size());
    for (const Row& row : rows_) ids.push_back(row.id);
    std::sort(ids.begin(), ids.end());
    const auto twice = std::adjacent_find(ids.begin(), ids.end());
    if (twice != ids.end()) throw std::runtime_error("two tokens have the id " + std::to_string(*twice));
}

std::optional<std::uint32_t> Vocabulary::find(std::string_view token) const {
    const std::uint64_t hash = hash_of(token);
    const std::size_t bucket = bucket_of(hash);
    const Row *first = rows_.data() + begins_[bucket], *last = rows_.data() + begins_[bucket + 1];
    const Row* row = std::lower_bound(first, last, hash, [&](const Row& before, std::uint64_t value) {
        return before.hash != value ? before.hash < value : name(before) < token;
    });
    const bool found = row != last && row->hash == hash && name(*row) == token;
    return found ? std::optional(row->id) : std::nullopt;
}

}  // namespace lrt
