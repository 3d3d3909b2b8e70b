// A prompt to sections of weighted pieces. Knows nothing of tokens.
#pragma once

#include "../base/log.hpp"

#include <latentrt/latentrt.h>

#include <string>
#include <string_view>
#include <vector>

namespace lrt {

struct Piece {
    std::string text;
    double weight = 1;
};

using Section = std::vector<Piece>;

// See runtime/text/prompt.py, `parse`. Throws for text that is not UTF-8, and for weights beyond 1000.
std::vector<Section> parse(std::string_view prompt, latentrt_prompt_syntax syntax, const Log& log);

}  // namespace lrt
