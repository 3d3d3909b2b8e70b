#include "checks.hpp"

#include "../base/error.hpp"
#include "../base/limits.hpp"
#include "../base/numbers.hpp"
#include "../base/utf8.hpp"

#include <algorithm>
#include <limits>
#include <random>

namespace lrt {

namespace {

Error refused(std::string_view name, const std::string& value, const std::string& expected) {
    return input_error(std::string(name) + "=" + value + ": expected " + expected);
}

bool within(const Option& option, double value) {
    const double most = option.limit.name == nullptr ? option.most : static_cast<double>(limits().*option.limit.most);
    return option.least <= value && value <= most && !(option.above && value == option.least);
}

std::string expected(const Option& option) {
    const std::string text(option.expected);
    if (option.limit.name == nullptr) return text;
    return text + std::to_string(limits().*option.limit.most) + "; " + raised_by(option.limit.name);
}

}  // namespace

void check_integer(std::string_view name, std::int64_t value) {
    const Option& option = option_named(name);
    if (!within(option, static_cast<double>(value)))
        throw refused(name, std::to_string(value), expected(option));
}

void check_number(std::string_view name, double value) {
    const Option& option = option_named(name);
    if (!within(option, value)) throw refused(name, repr(value), expected(option));
}

void check_choice(std::string_view name, std::string_view value) {
    const Option& option = option_named(name);
    const Choice* end = option.choices + option.choices_count;
    if (std::any_of(option.choices, end, [&](const Choice& choice) { return choice.name == value; })) return;
    throw refused(name, shown(value), expected(option));
}

void check_side(std::string_view name, std::int64_t value, std::int64_t factor) {
    const std::string each = std::to_string(factor);
    if (value < factor || value > limits().MAX_SIDE)
        throw refused(name, std::to_string(value), "an integer from " + each + " to " +
                                                       std::to_string(limits().MAX_SIDE) + ", a multiple of " + each);
    if (const std::int64_t below = value / factor * factor; below != value)
        throw refused(name, std::to_string(value),
                      "a multiple of " + each + "; the nearest are " + std::to_string(below) + " and " +
                          std::to_string(below + factor));
}

void check_layers(std::string_view name, std::int64_t value, std::int64_t layers) {
    if (value < 0 || value >= layers)
        throw refused(name, std::to_string(value), "an integer from 0 to " + std::to_string(layers - 1) +
                                                       ": this text encoder has " + std::to_string(layers) + " layers");
}

void check_pair(std::string_view name, latentrt_pair value) {
    const Option& option = option_named(name);
    if (!within(option, value.first) || !within(option, value.second))
        throw refused(name, "(" + std::to_string(value.first) + ", " + std::to_string(value.second) + ")",
                      expected(option));
}

void check_text(std::string_view name, std::string_view text) {
    for (std::size_t at = 0; at < text.size();)
        if (!next_point(text, at))
            throw input_error(std::string(name) + ": " + shown(text, 60) + " is not UTF-8 at byte " +
                              std::to_string(at) + ": it was truncated or decoded wrongly");
    // Bytes that do not go on with a character begin one.
    const auto characters = std::count_if(text.begin(), text.end(), [](char byte) { return (byte & 0xC0) != 0x80; });
    if (characters > limits().MAX_CHARACTERS)
        throw input_error(std::string(name) + " has a text of " + grouped(static_cast<std::uint64_t>(characters)) +
                          " characters: expected at most " +
                          grouped(static_cast<std::uint64_t>(limits().MAX_CHARACTERS)) + "; " +
                          raised_by("MAX_CHARACTERS"));
}

std::vector<std::uint64_t> checked_seeds(const std::uint64_t* seeds, std::size_t count, std::size_t images,
                                         std::int64_t noise_seed_delta) {
    const std::uint64_t random = count == 0 ? std::random_device()() : 0;
    if (count == 0) seeds = &random, count = 1;
    if (count != 1 && count != images)
        throw input_error(std::to_string(count) + " seeds for " + std::to_string(images) +
                          " images: pass one, or one for each");
    std::vector<std::uint64_t> result;
    for (std::size_t i = 0; i < images; ++i) {
        const std::uint64_t first = seeds[count == 1 ? 0 : i], up = count == 1 ? i : 0;
        const std::uint64_t most = std::numeric_limits<std::uint64_t>::max() - up;
        const std::uint64_t delta = noise_seed_delta > 0 ? static_cast<std::uint64_t>(noise_seed_delta) : 0;
        if (first > most || delta > most - first)
            throw input_error("seed=" + std::to_string(first) +
                              " with the numbers that follow it, and noise_seed_delta: expected an integer from 0 to "
                              "2**64 - 1");
        result.push_back(first + up);
    }
    return result;
}

}  // namespace lrt
