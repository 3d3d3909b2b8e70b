#include "deflate.hpp"

#include "huffman.hpp"

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <utility>

namespace lrt {

namespace {

using Buffer = std::vector<std::uint8_t>;

constexpr std::size_t WINDOW = 32768, LONGEST = 258;
constexpr std::size_t WORTHWHILE = 6;  // bytes; shorter repetitions in rows of filtered pixels are chance
constexpr std::size_t TRIES = 32;      // earlier places to compare with
constexpr std::size_t GOOD = 32;       // bytes; a repetition of this length ends the search
constexpr std::size_t BLOCK = 32768;   // tokens of a block, which has codes of its own
constexpr int HASH_BITS = 15;
constexpr std::size_t END = 256;  // the symbol that ends a block

// A literal byte, or a repetition of `length` bytes from `distance` before.
struct Token {
    std::uint16_t length = 0, distance = 0;  // a literal's byte is in `distance`
};

// Lengths and distances are a symbol and extra bits. `base` of a symbol and how many bits follow it.
struct Extra {
    unsigned base, bits;
};

constexpr Extra LENGTHS[] = {{3, 0},   {4, 0},   {5, 0},   {6, 0},   {7, 0},  {8, 0},  {9, 0},  {10, 0},
                             {11, 1},  {13, 1},  {15, 1},  {17, 1},  {19, 2}, {23, 2}, {27, 2}, {31, 2},
                             {35, 3},  {43, 3},  {51, 3},  {59, 3},  {67, 4}, {83, 4}, {99, 4}, {115, 4},
                             {131, 5}, {163, 5}, {195, 5}, {227, 5}, {258, 0}};
constexpr Extra DISTANCES[] = {{1, 0},     {2, 0},     {3, 0},     {4, 0},      {5, 1},      {7, 1},
                               {9, 2},     {13, 2},    {17, 3},    {25, 3},     {33, 4},     {49, 4},
                               {65, 5},    {97, 5},    {129, 6},   {193, 6},    {257, 7},    {385, 7},
                               {513, 8},   {769, 8},   {1025, 9},  {1537, 9},   {2049, 10},  {3073, 10},
                               {4097, 11}, {6145, 11}, {8193, 12}, {12289, 12}, {16385, 13}, {24577, 13}};

template <std::size_t N>
std::size_t symbol_of(const Extra (&table)[N], unsigned value) {
    const Extra* after =
        std::upper_bound(table, table + N, value, [](unsigned given, const Extra& each) { return given < each.base; });
    return static_cast<std::size_t>(after - table) - 1;
}

class Bits {
  public:
    explicit Bits(Buffer& out) : out_(out) {}

    // At most 16 bits, the lowest first.
    void put(unsigned bits, unsigned count) {
        held_ |= bits << filled_;
        for (filled_ += count; filled_ >= 8; filled_ -= 8, held_ >>= 8)
            out_.push_back(static_cast<std::uint8_t>(held_));
    }
    void put(const PrefixCode& code, std::size_t symbol) { put(code.bits[symbol], code.lengths[symbol]); }
    void finish() {
        if (filled_ > 0) put(0, 8 - filled_);
    }

  private:
    Buffer& out_;
    unsigned held_ = 0, filled_ = 0;
};

// Finds what was there before, by the last places that began with the same bytes.
class Matches {
  public:
    explicit Matches(const Buffer& data) : data_(data), last_(std::size_t{1} << HASH_BITS), before_(WINDOW) {}

    // The longest repetition that begins at a place; its length is 0 where none is worthwhile.
    Token at(std::size_t place) const {
        Token best;
        const std::size_t most = std::min(LONGEST, data_.size() - place);
        if (most < WORTHWHILE) return best;
        std::size_t tries = TRIES;
        // Places are counted from 1, so that 0 is none; each is nearer to the begin than the one before it.
        for (std::size_t next = last_[hash(place)]; next != 0 && place + 1 - next < WINDOW && tries > 0; --tries) {
            const std::size_t length = common(next - 1, place, most);
            if (length >= WORTHWHILE && length > best.length)
                best = {static_cast<std::uint16_t>(length), static_cast<std::uint16_t>(place + 1 - next)};
            if (length >= GOOD) break;
            const std::size_t earlier = before_[next % WINDOW];
            if (earlier >= next) break;  // it was overwritten
            next = earlier;
        }
        return best;
    }

    void add(std::size_t place) {
        if (place + WORTHWHILE > data_.size()) return;
        std::size_t& last = last_[hash(place)];
        before_[(place + 1) % WINDOW] = last;
        last = place + 1;
    }

  private:
    std::size_t hash(std::size_t place) const {
        std::uint64_t bytes = 0;
        for (std::size_t i = 0; i < WORTHWHILE; ++i) bytes = bytes << 8 | data_[place + i];
        return static_cast<std::size_t>(bytes * 0x9E3779B97F4A7C15u >> (64 - HASH_BITS));
    }

    std::size_t common(std::size_t earlier, std::size_t place, std::size_t most) const {
        std::size_t length = 0;
        while (length < most && data_[earlier + length] == data_[place + length]) ++length;
        return length;
    }

    const Buffer& data_;
    std::vector<std::size_t> last_, before_;
};

// Lengths of code words, with repetitions: pairs of a symbol of 0 to 18 and its extra bits.
std::vector<std::pair<std::size_t, unsigned>> run_lengths(const std::vector<std::uint8_t>& lengths) {
    std::vector<std::pair<std::size_t, unsigned>> result;
    for (std::size_t i = 0; i < lengths.size();) {
        std::size_t run = 1;
        while (i + run < lengths.size() && lengths[i + run] == lengths[i]) ++run;
        i += run;
        const std::uint8_t length = lengths[i - 1];
        if (length != 0) result.emplace_back(length, 0), --run;
        while (run >= 3) {
            const std::size_t part = std::min(run, std::size_t{length != 0 ? 6u : 138u});
            const bool many = part > 10;
            result.emplace_back(length != 0 ? 16 : many ? 18 : 17, static_cast<unsigned>(part - (many ? 11 : 3)));
            run -= part;
        }
        for (; run > 0; --run) result.emplace_back(length, 0);
    }
    return result;
}

void put_codes(Bits& bits, const PrefixCode& literals, const PrefixCode& distances) {
    constexpr std::size_t ORDER[] = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};
    std::vector<std::uint8_t> lengths = literals.lengths;
    lengths.insert(lengths.end(), distances.lengths.begin(), distances.lengths.end());
    const auto runs = run_lengths(lengths);
    std::vector<std::uint32_t> counts(19);
    for (const auto& [symbol, extra] : runs) ++counts[symbol];
    const PrefixCode code = prefix_code(counts, 7);

    bits.put(static_cast<unsigned>(literals.lengths.size() - 257), 5);
    bits.put(static_cast<unsigned>(distances.lengths.size() - 1), 5);
    bits.put(19 - 4, 4);
    for (const std::size_t symbol : ORDER) bits.put(code.lengths[symbol], 3);
    for (const auto& [symbol, extra] : runs) {
        bits.put(code, symbol);
        if (symbol >= 16) bits.put(extra, symbol == 16 ? 2 : symbol == 17 ? 3 : 7);
    }
}

void put_block(Bits& bits, const std::vector<Token>& tokens, bool last) {
    std::vector<std::uint32_t> literal_counts(257 + std::size(LENGTHS)), distance_counts(std::size(DISTANCES));
    literal_counts[END] = 1;
    for (const Token& token : tokens) {
        ++literal_counts[token.length == 0 ? token.distance : 257 + symbol_of(LENGTHS, token.length)];
        if (token.length != 0) ++distance_counts[symbol_of(DISTANCES, token.distance)];
    }
    const PrefixCode literals = prefix_code(literal_counts, 15), distances = prefix_code(distance_counts, 15);

    bits.put(last ? 1 : 0, 1);
    bits.put(2, 2);  // codes of its own
    put_codes(bits, literals, distances);
    for (const Token& token : tokens) {
        if (token.length == 0) {
            bits.put(literals, token.distance);
            continue;
        }
        const std::size_t length = symbol_of(LENGTHS, token.length), distance = symbol_of(DISTANCES, token.distance);
        bits.put(literals, 257 + length);
        bits.put(token.length - LENGTHS[length].base, LENGTHS[length].bits);
        bits.put(distances, distance);
        bits.put(token.distance - DISTANCES[distance].base, DISTANCES[distance].bits);
    }
    bits.put(literals, END);
}

std::uint32_t adler32(const Buffer& data) {
    constexpr std::size_t part = 5552;  // bytes whose sums fit 32 bits
    std::uint32_t first = 1, second = 0;
    for (std::size_t begin = 0; begin < data.size(); begin += part) {
        for (std::size_t i = begin; i < std::min(begin + part, data.size()); ++i) {
            first += data[i];
            second += first;
        }
        first %= 65521;
        second %= 65521;
    }
    return second << 16 | first;
}

}  // namespace

std::vector<std::uint8_t> deflated(const std::vector<std::uint8_t>& data) {
    Buffer out{0x78, 0x9C};
    Bits bits(out);
    Matches matches(data);
    std::vector<Token> tokens;
    for (std::size_t place = 0; place < data.size();) {
        Token token = matches.at(place);
        const std::size_t length = std::max(token.length, std::uint16_t{1});
        if (token.length == 0) token.distance = data[place];
        tokens.push_back(token);
        for (const std::size_t end = place + length; place < end; ++place) matches.add(place);
        if (tokens.size() == BLOCK && place < data.size()) {
            put_block(bits, tokens, false);
            tokens.clear();
        }
    }
    put_block(bits, tokens, true);
    bits.finish();
    const std::uint32_t sum = adler32(data);
    for (int shift = 24; shift >= 0; shift -= 8) out.push_back(static_cast<std::uint8_t>(sum >> shift));
    return out;
}

}  // namespace lrt
