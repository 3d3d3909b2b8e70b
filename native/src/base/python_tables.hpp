// What Python takes characters for. The tables are written by native/tools/unicode_tables.py.
#pragma once

#include "ranges.hpp"

namespace lrt {

extern const Table<Range> PYTHON_SPACES;     // str.isspace, and \s of its regular expressions
extern const Table<Range> PYTHON_WORDS;      // \w of its regular expressions
extern const Table<Range> PYTHON_PRINTABLE;  // str.isprintable

}  // namespace lrt
