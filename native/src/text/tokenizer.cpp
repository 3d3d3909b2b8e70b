#include "tokenizer.hpp"

#include "../base/error.hpp"
#include "../base/python_tables.hpp"
#include "../base/utf8.hpp"
#include "added_tokens.hpp"
#include "byte_pairs.hpp"
#include "normal_form.hpp"
#include "tokenizer_file.hpp"
#include "words.hpp"

#include <algorithm>
#include <exception>
#include <map>

namespace lrt {

namespace {

// As in the web UI, a full chunk ends after a comma if there is one among its last tokens.
constexpr std::size_t COMMA_WITHIN = 20;

using Span = std::pair<std::size_t, std::size_t>;

struct Weighted {
    std::vector<std::int64_t> ids;
    std::vector<float> weights;
};

// Ranges of the chunks; at least one, which is empty only if there are no ids.
std::vector<Span> spans_of(const std::vector<std::int64_t>& ids, std::size_t capacity, std::int64_t comma) {
    std::vector<Span> spans;
    std::size_t start = 0;
    while (ids.size() - start > capacity) {
        std::size_t end = start + capacity;
        if (ids[end] != comma) {
            const std::size_t least = std::max(start, end > COMMA_WITHIN ? end - COMMA_WITHIN : 0);
            std::size_t after = end;
            while (after > least && ids[after - 1] != comma) --after;
            if (after > least) end = after;
        }
        spans.emplace_back(start, end);
        start = end;
    }
    spans.emplace_back(start, ids.size());
    return spans;
}

// Without white space at both ends, as Python's str.strip.
std::string stripped(std::string_view text) {
    std::u32string points = decoded(text).value_or(std::u32string());
    const auto is_space = [](char32_t point) { return contains(PYTHON_SPACES, point); };
    points.erase(std::find_if_not(points.rbegin(), points.rend(), is_space).base(), points.end());
    points.erase(points.begin(), std::find_if_not(points.begin(), points.end(), is_space));
    return encoded(points);
}

std::u32string normalized_word(const std::string& word) {
    const std::u32string points = decoded(word).value_or(std::u32string());
    return normalized(points, std::vector<std::size_t>(points.size()).data()).text;
}

}  // namespace

struct Tokenizer::Tables {
    explicit Tables(const TokenizerFile& file, const TextEncoder& facts);

    Located pieces(std::string_view text) const;
    void append_normalized(std::u32string_view text, const std::size_t* at, Located& located) const;
    void append_row(const Weighted& all, std::size_t first, std::size_t last, Chunks& chunks) const;

    BytePairs pairs;
    AddedTokens as_written, in_normal_form;
    bool special_words;
    std::map<std::int64_t, std::vector<std::int64_t>> embeddings;  // by their first id
    std::int64_t bos, eos, pad, comma = 0;
    std::size_t max_length;
};

Tokenizer::Tables::Tables(const TokenizerFile& file, const TextEncoder& facts)
    : pairs(file),
      special_words(file.special_words),
      bos(facts.bos),
      eos(facts.eos),
      pad(facts.pad),
      max_length(static_cast<std::size_t>(facts.max_length)) {
    for (const AddedToken& token : file.added) {
        if (token.normalized)
            in_normal_form.add(normalized_word(token.content), token.id);
        else
            as_written.add(decoded(token.content).value_or(std::u32string()), token.id);
    }
    as_written.finish();
    in_normal_form.finish();
    for (const auto& [word, ids] : facts.embeddings)
        if (!ids.empty()) embeddings[ids.front()] = ids;
    comma = pieces(",").back().first;
}

// Ids before textual inversions are expanded.
Located Tokenizer::Tables::pieces(std::string_view text) const {
    std::u32string points;
    std::vector<std::size_t> at;
    for (std::size_t next = 0; next < text.size();) {
        at.push_back(next);
        const std::optional<char32_t> point = next_point(text, next);
        if (!point) throw input_error("the text " + shown(text, 60) + " is not UTF-8 at byte " + std::to_string(next));
        points += *point;
    }
    Located located;
    for (std::size_t from = 0; from < points.size();) {
        const auto found = as_written.find(points, from);
        const std::size_t end = found ? found->first : points.size();
        append_normalized(std::u32string_view(points).substr(from, end - from), at.data() + from, located);
        if (!found) break;
        located.emplace_back(found->id, at[found->first]);
        from = found->last;
    }
    return located;
}

// What is between words that were found as they are written.
void Tokenizer::Tables::append_normalized(std::u32string_view text, const std::size_t* at, Located& located) const {
    if (text.empty()) return;
    const Points points = normalized(text, at);
    const std::u32string_view whole = points.text;
    for (std::size_t from = 0; from < whole.size();) {
        const auto found = in_normal_form.find(whole, from);
        const std::size_t end = found ? found->first : whole.size();
        for (const auto& [first, last] : words_of(whole.substr(from, end - from), special_words))
            pairs.append(whole.substr(from + first, last - first), points.at.data() + from + first, located);
        if (!found) break;
        located.emplace_back(found->id, points.at[found->first]);
        from = found->last;
    }
}

// [bos, ids, eos, pad, …]
void Tokenizer::Tables::append_row(const Weighted& all, std::size_t first, std::size_t last, Chunks& chunks) const {
    std::vector<std::int64_t>& ids = chunks.ids.values;
    std::vector<float>& weights = chunks.weights.values;
    const std::size_t end = ids.size() + max_length;
    ids.push_back(bos);
    ids.insert(ids.end(), all.ids.data() + first, all.ids.data() + last);
    ids.push_back(eos);
    ids.resize(end, pad);
    weights.push_back(1);
    weights.insert(weights.end(), all.weights.data() + first, all.weights.data() + last);
    weights.resize(end, 1);
}

Tokenizer::Tokenizer(std::string_view json, const TextEncoder& facts) {
    const std::string before = facts.tokenizer + " cannot be read as a tokenizer: ";
    if (facts.max_length < 3 || facts.max_length > 1 << 20)
        throw bundle_error(before + "max_length is " + std::to_string(facts.max_length));
    try {
        tables_ = std::make_unique<const Tables>(tokenizer_file_from(json), facts);
    } catch (const std::runtime_error& error) {
        throw bundle_error(before + error.what());
    }
}

Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;

std::size_t Tokenizer::capacity() const { return tables_->max_length - 2; }

std::vector<std::pair<std::int64_t, std::size_t>> Tokenizer::located(std::string_view text) const {
    Located located;
    for (const auto& [id, at] : tables_->pieces(text)) {
        const auto embedding = tables_->embeddings.find(id);
        if (embedding == tables_->embeddings.end())
            located.emplace_back(id, at);
        else
            for (const std::int64_t part : embedding->second) located.emplace_back(part, at);
    }
    return located;
}

namespace {

Weighted weighted(const Tokenizer& tokenizer, const Section& section) {
    Weighted all;
    for (const Piece& piece : section) {
        for (const auto& [id, at] : tokenizer.located(piece.text)) all.ids.push_back(id);
        all.weights.resize(all.ids.size(), static_cast<float>(piece.weight));
    }
    return all;
}

// The text from the first id that does not fit.
std::string rest_of(const Tokenizer& tokenizer, const Section& section) {
    auto left = static_cast<std::ptrdiff_t>(tokenizer.capacity());
    std::string rest;
    for (const Piece& piece : section) {
        const Located located = tokenizer.located(piece.text);
        const auto count = static_cast<std::ptrdiff_t>(located.size());
        if (left < count)
            rest += left > 0 ? piece.text.substr(located[static_cast<std::size_t>(left)].second) : piece.text;
        left -= count;
    }
    return stripped(rest);
}

}  // namespace

Chunks Tokenizer::chunks(const std::vector<Section>& sections, bool split) const {
    Chunks chunks;
    bool was_cut = false;
    for (const Section& section : sections) {
        const Weighted all = weighted(*this, section);
        chunks.tokens += all.ids.size();
        std::vector<Span> spans = {{0, capacity()}};
        if (all.ids.size() <= capacity() || split) {
            spans = spans_of(all.ids, capacity(), tables_->comma);
        } else {
            chunks.dropped += (was_cut ? " … " : "") + rest_of(*this, section);
            was_cut = true;
        }
        for (const auto& [first, last] : spans) tables_->append_row(all, first, last, chunks);
    }
    const auto length = static_cast<std::int64_t>(tables_->max_length);
    chunks.ids.shape = chunks.weights.shape = {static_cast<std::int64_t>(chunks.ids.values.size()) / length, length};
    return chunks;
}

}  // namespace lrt
