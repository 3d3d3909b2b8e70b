// How much one call may ask for: a mistyped or hostile number must not use up all memory. See runtime/limits.py.
#pragma once

#include <cstdint>
#include <string>

namespace lrt {

// Each can be set by an environment variable, LATENTRT_ and its name, which is read once.
struct Limits {
    std::int64_t MAX_SIDE, MAX_IMAGES, MAX_PIXELS, MAX_CHARACTERS, MAX_TOKENS, MAX_STEPS, MAX_TOKENS_OF_TEXT;
    // Of the noise that a call draws, in pixels: initial noise and each draw of each image.
    std::int64_t MAX_NOISE;
};

// Throws for an environment variable that is no number.
const Limits& limits();

// How to raise a limit, for messages.
std::string raised_by(const char* name);

}  // namespace lrt
