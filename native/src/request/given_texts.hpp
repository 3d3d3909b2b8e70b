// The prompts of a call, for each guidance group. See runtime/text/given_texts.py.
#pragma once

#include "../bundle/manifest.hpp"
#include "../text/conditioning.hpp"

#include <latentrt/latentrt.h>

#include <string>
#include <utility>

namespace lrt {

// A text as bytes; "" where it is not given. Throws for one that holds a NUL.
std::string text_given(const latentrt_text& text, const char* name);

// The positive and the negative group, one entry for each image.
std::pair<Side, Side> sides_from(const latentrt_request& given, const Model& model, std::size_t per_prompt);

}  // namespace lrt
