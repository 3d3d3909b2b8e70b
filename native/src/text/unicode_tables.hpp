// What the library `tokenizers` does with characters. The tables are written by native/tools/unicode_tables.py.
#pragma once

#include "../base/ranges.hpp"

#include <cstdint>

namespace lrt {

// Every `step`-th character of a range becomes another one.
struct LowerCase {
    char32_t first, last;
    std::uint32_t step;
    std::int32_t added;
};

struct CombiningClass {
    char32_t first, last;
    std::uint8_t number;
};

// The full canonical decomposition of a character: a part of DECOMPOSED.
struct Decomposition {
    char32_t point;
    std::uint16_t at;
    std::uint8_t count;
};

struct Composition {
    char32_t first, second, result;
};

extern const Table<Range> LETTERS;  // \p{L} in the pre-tokenizer's pattern
extern const Table<Range> NUMBERS;  // \p{N}
extern const Table<Range> SPACES;   // \s
extern const Table<LowerCase> LOWER_CASES;
// The data of NFC without Hangul, which is computed.
extern const Table<CombiningClass> COMBINING_CLASSES;
extern const Table<Decomposition> DECOMPOSITIONS;
extern const Table<char32_t> DECOMPOSED;
extern const Table<Composition> COMPOSITIONS;

}  // namespace lrt
