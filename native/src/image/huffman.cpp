#include "huffman.hpp"

#include <algorithm>
#include <functional>
#include <queue>
#include <utility>

namespace lrt {

namespace {

// The depth of each symbol in Huffman's tree.
std::vector<std::uint8_t> depths(const std::vector<std::uint32_t>& counts) {
    using Node = std::pair<std::uint64_t, std::size_t>;  // weight, index
    std::priority_queue<Node, std::vector<Node>, std::greater<>> open;
    std::vector<std::size_t> parents(2 * counts.size());
    for (std::size_t symbol = 0; symbol < counts.size(); ++symbol)
        if (counts[symbol] != 0) open.emplace(counts[symbol], symbol);
    std::size_t next = counts.size();
    while (open.size() > 1) {
        const Node first = open.top();
        open.pop();
        const Node second = open.top();
        open.pop();
        parents[first.second] = parents[second.second] = next;
        open.emplace(first.first + second.first, next++);
    }
    // From the root, which was made last, down; a node's parent was made after it.
    std::vector<std::uint8_t> result(2 * counts.size());
    for (std::size_t node = next - 1; node-- > 0;)
        if (parents[node] != 0) result[node] = static_cast<std::uint8_t>(result[parents[node]] + 1);
    result.resize(counts.size());
    return result;
}

std::uint16_t reversed(unsigned word, int length) {
    unsigned result = 0;
    for (int bit = 0; bit < length; ++bit) result |= (word >> bit & 1) << (length - 1 - bit);
    return static_cast<std::uint16_t>(result);
}

}  // namespace

PrefixCode prefix_code(std::vector<std::uint32_t> counts, int longest) {
    auto unused = static_cast<std::size_t>(std::count(counts.begin(), counts.end(), 0u));
    for (std::uint32_t& count : counts)
        if (unused + 1 >= counts.size() && count == 0) count = 1, --unused;
    PrefixCode code;
    code.lengths = depths(counts);
    while (*std::max_element(code.lengths.begin(), code.lengths.end()) > longest) {
        // Nearer to each other, so that the tree is flatter.
        for (std::uint32_t& count : counts) count = (count + 1) / 2;
        code.lengths = depths(counts);
    }
    // Words in the order of their lengths, then of the symbols.
    code.bits.resize(counts.size());
    unsigned word = 0;
    for (int length = 1; length <= longest; ++length, word <<= 1)
        for (std::size_t symbol = 0; symbol < counts.size(); ++symbol)
            if (code.lengths[symbol] == length) code.bits[symbol] = reversed(word++, length);
    return code;
}

}  // namespace lrt
