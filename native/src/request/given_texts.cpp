#include "given_texts.hpp"

#include "../base/error.hpp"
#include "../base/limits.hpp"
#include "../base/utf8.hpp"
#include "checks.hpp"

#include <cstring>
#include <vector>

namespace lrt {

namespace {

constexpr std::size_t MOST = std::size_t{1} << 28;  // bytes of a text; documents of plans are the longest

using Strings = std::vector<std::string>;

struct Given {
    const latentrt_text* texts;
    std::size_t count;
    const char* name;

    bool any() const { return count != 0; }
};

// One text for each prompt.
Strings texts_of(const Given& given, std::size_t prompts) {
    if (given.texts == nullptr) throw input_error(std::string(given.name) + "_count is set: pass " + given.name);
    if (given.count != 1 && given.count != prompts)
        throw input_error(std::string(given.name) + " has " + std::to_string(given.count) + " entries for " +
                          std::to_string(prompts) + " prompts: pass one, or one per prompt");
    Strings texts;
    for (std::size_t i = 0; i < given.count; ++i) {
        if (given.texts[i].data == nullptr)
            throw input_error(std::string(given.name) + "[" + std::to_string(i) + "] is NULL: pass a text, or \"\"");
        texts.push_back(text_given(given.texts[i], given.name));
        check_text(given.name, texts.back());
    }
    if (texts.size() == 1) texts.resize(prompts, texts.front());
    return texts;
}

Strings repeated(const Strings& texts, std::size_t times) {
    Strings all;
    for (const std::string& text : texts) all.insert(all.end(), times, text);
    return all;
}

Side side_from(const Given& first, const Given& second, const Model& model, std::size_t prompts,
               std::size_t per_prompt) {
    if (second.any() && model.text_encoders.size() == 1)
        throw input_error(std::string(second.name) + " is for models with two text encoders; " + model.family +
                          " has one: leave it out");
    const Strings of_first = first.any() ? texts_of(first, prompts) : Strings(prompts);
    Strings of_others = second.any() ? texts_of(second, prompts) : of_first;
    // As in diffusers, "" counts as not given.
    if (second.count == 1 && of_others.front().empty()) of_others = of_first;
    Side side;
    for (std::size_t encoder = 0; encoder < model.text_encoders.size(); ++encoder)
        side.texts.push_back(repeated(encoder == 0 ? of_first : of_others, per_prompt));
    side.zeros = !first.any() && !second.any() && model.force_zeros_for_empty_prompt;
    return side;
}

}  // namespace

std::string text_given(const latentrt_text& text, const char* name) {
    if (text.data == nullptr) return {};
    if (text.length != LATENTRT_NUL && text.length > MOST)
        throw input_error(std::string(name) + " has " + std::to_string(text.length) + " bytes: expected at most " +
                          std::to_string(MOST) + ", or LATENTRT_NUL");
    std::string copy(text.data, text.length == LATENTRT_NUL ? std::strlen(text.data) : text.length);
    if (copy.find('\0') != std::string::npos) throw input_error(std::string(name) + " holds a NUL");
    return copy;
}

std::pair<Side, Side> sides_from(const latentrt_request& given, const Model& model, std::size_t per_prompt) {
    const std::size_t prompts = given.prompts_count;
    if (prompts == 0) throw input_error("pass prompts; an empty prompt ('') is allowed");
    const auto most = static_cast<std::size_t>(limits().MAX_IMAGES);
    if (prompts > most || prompts * per_prompt > most)
        throw input_error(std::to_string(prompts) + " prompts of " + std::to_string(per_prompt) +
                          " images each: expected at most " + std::to_string(most) + " images; " +
                          raised_by("MAX_IMAGES"));
    const Given first{given.prompts, prompts, "prompts"};
    const Given second{given.prompts_2, given.prompts_2_count, "prompts_2"};
    const Given negative{given.negative_prompts, given.negative_prompts_count, "negative_prompts"};
    const Given negative_second{given.negative_prompts_2, given.negative_prompts_2_count, "negative_prompts_2"};
    return {side_from(first, second, model, prompts, per_prompt),
            side_from(negative, negative_second, model, prompts, per_prompt)};
}

}  // namespace lrt
