#include "byte_pairs.hpp"

#include "../base/utf8.hpp"

#include <algorithm>
#include <queue>
#include <stdexcept>
#include <string>

namespace lrt {

namespace {

// In vocabularies each byte is a visible character: itself where it is one in Latin-1, and else one from 256 on.
std::array<std::string, 256> byte_names() {
    std::array<std::string, 256> names;
    char32_t next = 256;
    for (std::uint32_t byte = 0; byte < 256; ++byte) {
        const bool visible = (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte != 0xad);
        append_utf8(names[byte], visible ? byte : next++);
    }
    return names;
}

std::uint32_t id_of(const Vocabulary& vocabulary, const std::string& token, const char* where) {
    const auto id = vocabulary.find(token);
    if (!id) throw std::runtime_error(where + shown(token, 40) + ", which is not in its vocabulary");
    return *id;
}

}  // namespace

BytePairs::BytePairs(const TokenizerFile& file) {
    read_bytes(file);
    read_merges(file);
}

void BytePairs::read_bytes(const TokenizerFile& file) {
    const std::uint32_t unknown = id_of(file.vocabulary, file.unknown, "model.unk_token is ");
    const auto names = byte_names();
    for (std::size_t byte = 0; byte < 256; ++byte) {
        inside_[byte] = file.vocabulary.find(names[byte]).value_or(unknown);
        last_[byte] = file.vocabulary.find(names[byte] + "</w>").value_or(unknown);
    }
}

void BytePairs::read_merges(const TokenizerFile& file) {
    std::uint32_t greatest = 0;
    merges_.reserve(file.merges.size());
    for (const auto& [left, right] : file.merges) {
        Merge merge{};
        merge.left = id_of(file.vocabulary, left, "model.merges names ");
        merge.right = id_of(file.vocabulary, right, "model.merges names ");
        merge.rank = static_cast<std::uint32_t>(merges_.size());
        merge.result = id_of(file.vocabulary, left + right, "model.merges makes ");
        greatest = std::max(greatest, merge.left);
        merges_.push_back(merge);
    }
    // Where a pair occurs twice, the last one counts: it comes first here, and is found first.
    std::sort(merges_.begin(), merges_.end(), [](const Merge& a, const Merge& b) {
        if (a.left != b.left) return a.left < b.left;
        return a.right != b.right ? a.right < b.right : a.rank > b.rank;
    });
    begins_.assign(std::size_t{greatest} + 2, 0);
    for (const Merge& merge : merges_) ++begins_[merge.left + 1];
    for (std::size_t i = 1; i < begins_.size(); ++i) begins_[i] += begins_[i - 1];
}

const BytePairs::Merge* BytePairs::merge_of(std::uint32_t left, std::uint32_t right) const {
    if (std::size_t{left} + 1 >= begins_.size()) return nullptr;
    const Merge *first = merges_.data() + begins_[left], *last = merges_.data() + begins_[left + 1];
    const Merge* found =
        std::lower_bound(first, last, right, [](const Merge& merge, std::uint32_t id) { return merge.right < id; });
    return found != last && found->right == right ? found : nullptr;
}

// A word while its symbols are merged: a list of symbols in an array, and a heap of what may be merged.
class BytePairs::Word {
  public:
    explicit Word(const BytePairs& pairs) : pairs_(pairs) {}

    void add(std::uint32_t id, std::size_t at) {
        symbols_.push_back({at, id, symbols_.size() + 1, symbols_.size() - 1});
    }
    void end_with(const std::array<std::uint32_t, 256>& last, std::uint8_t byte) { symbols_.back().id = last[byte]; }

    void merge_all() {
        for (std::size_t i = 0; i + 1 < symbols_.size(); ++i) suggest(i);
        while (!candidates_.empty()) {
            const Candidate candidate = candidates_.top();
            candidates_.pop();
            merge(candidate);
        }
    }

    void append_to(Located& located) const {
        for (std::size_t i = 0; i < symbols_.size(); i = symbols_[i].next)
            located.emplace_back(symbols_[i].id, symbols_[i].at);
    }

  private:
    struct Symbol {
        std::size_t at;
        std::uint32_t id;
        std::size_t next, previous;  // beyond the end: none
        bool gone = false;
    };
    struct Candidate {
        std::uint32_t rank, result;
        std::size_t left;
        // For the heap, which gives the greatest: the first merge, and of equal ones the first in the word.
        bool operator<(const Candidate& other) const {
            return rank != other.rank ? rank > other.rank : left > other.left;
        }
    };

    // The pair of a symbol and the next one.
    void suggest(std::size_t left) {
        const Merge* merge = pairs_.merge_of(symbols_[left].id, symbols_[symbols_[left].next].id);
        if (merge != nullptr) candidates_.push({merge->rank, merge->result, left});
    }

    void merge(const Candidate& candidate) {
        Symbol& left = symbols_[candidate.left];
        if (left.gone || left.next >= symbols_.size()) return;
        Symbol& right = symbols_[left.next];
        // What was suggested may have been merged with something else since.
        const Merge* merge = pairs_.merge_of(left.id, right.id);
        if (merge == nullptr || merge->result != candidate.result) return;
        left.id = candidate.result;
        left.next = right.next;
        right.gone = true;
        if (left.next < symbols_.size()) {
            symbols_[left.next].previous = candidate.left;
            suggest(candidate.left);
        }
        if (left.previous < symbols_.size()) suggest(left.previous);
    }

    const BytePairs& pairs_;
    std::vector<Symbol> symbols_;
    std::priority_queue<Candidate> candidates_;
};

void BytePairs::append(std::u32string_view word, const std::size_t* at, Located& located) const {
    if (word.empty()) return;
    Word symbols(*this);
    std::string bytes;
    for (std::size_t i = 0; i < word.size(); ++i) {
        bytes.clear();
        append_utf8(bytes, word[i]);
        for (const char byte : bytes) symbols.add(inside_[static_cast<std::uint8_t>(byte)], at[i]);
    }
    symbols.end_with(last_, static_cast<std::uint8_t>(bytes.back()));
    symbols.merge_all();
    symbols.append_to(located);
}

}  // namespace lrt
