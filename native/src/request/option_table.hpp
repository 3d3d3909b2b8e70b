// The options of a call as data, generated from runtime/request/options.py.
#pragma once

#include "../base/limits.hpp"

#include <cstdint>
#include <string_view>

namespace lrt {

// The functions of runtime/request/kinds.py.
enum class Kind {
    integer,
    number,
    choice,
    text,
    seeds,
    side,
    layers,
    pair,
    numbers,
    boolean,
    picture,
    latents,
    scheduler,
    array
};

// How web UIs write a value.
enum class Form { none, plain, general, word, unless_zero, one_more_unless_zero };

struct Choice {
    std::string_view name;
    std::string_view label;  // of web UIs; empty: none
};

struct NamedLimit {
    const char* name = nullptr;
    std::int64_t Limits::* most = nullptr;
};

struct Option {
    std::string_view name;
    Kind kind = Kind::array;
    double least = 0, most = 0;
    NamedLimit limit;           // instead of `most`, and at the end of messages
    bool above = false;         // `least` itself is not allowed
    std::string_view expected;  // of messages, up to the limit
    const Choice* choices = nullptr;
    std::size_t choices_count = 0;
    std::string_view fixed;   // the default as JSON; empty: it depends on the bundle or on other options
    bool json = false;        // whether a PNG's text holds it
    std::string_view web_ui;  // label in the text that web UIs read; empty: none
    Form form = Form::none;
};

// What web UIs call a sampler or a schedule type.
struct WebUiName {
    std::string_view ours;
    std::string_view theirs;
};

// In the order of the text in PNG files.
struct OptionTable {
    const Option* begin() const;
    const Option* end() const;
};

// Throws std::out_of_range for a name that the table does not have.
const Option& option_named(std::string_view name);

// Sampler and schedule type as web UIs write them; empty where they have none.
struct WebUiSampler {
    std::string_view sampler, schedule_type;
};
WebUiSampler to_web_ui(std::string_view name);

}  // namespace lrt
