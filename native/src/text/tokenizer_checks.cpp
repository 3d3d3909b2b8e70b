#include "tokenizer_checks.hpp"

#include "../base/utf8.hpp"

#include <initializer_list>
#include <stdexcept>
#include <utility>

namespace lrt {

namespace {

constexpr const char* SPECIAL_WORDS = "<\\|startoftext\\|>|<\\|endoftext\\|>|";
constexpr const char* WORDS = "'s|'t|'re|'ve|'m|'ll|'d|[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+";

[[noreturn]] void refuse(const std::string& where, const Json* given, const std::string& expected) {
    throw std::runtime_error(where + " is " + (given == nullptr ? "missing" : written(*given)) + ": expected " +
                             expected + ", as in CLIP's tokenizers");
}

const Json* member(const Json& object, const std::string& key) {
    const auto found = object.find(key);
    return found == object.end() ? nullptr : &*found;
}

void require_object(const Json& given, const std::string& where) {
    if (!given.is_object()) refuse(where, &given, "an object");
}

// Every key is one of these, and so is their value, unless it is null here: then any may be given, or none.
void require_members(const Json& given, const std::string& where,
                     std::initializer_list<std::pair<const char*, Json>> all) {
    require_object(given, where);
    Json expected = Json::object();
    for (const auto& [key, value] : all) expected[key] = value;
    for (const auto& [key, value] : given.items())
        if (!expected.contains(key)) refuse(where + "." + shown(key, 40), &value, "no such key");
    for (const auto& [key, value] : expected.items()) {
        const Json* found = member(given, key);
        if (value.is_null() || (found != nullptr && *found == value)) continue;
        refuse(where + "." + key, found, value.dump());
    }
}

const Json& sequence(const Json& given, const std::string& where, const char* key, std::size_t count) {
    require_members(given, where, {{"type", "Sequence"}, {key, nullptr}});
    const Json* parts = member(given, key);
    if (parts == nullptr || !parts->is_array() || parts->size() != count)
        refuse(where + "." + key, parts, "a list of " + std::to_string(count));
    return *parts;
}

void require_normalizer(const Json& given) {
    const std::string where = "normalizer";
    const Json& parts = sequence(given, where, "normalizers", 3);
    require_members(parts[0], where + ".normalizers[0]", {{"type", "NFC"}});
    require_members(parts[1], where + ".normalizers[1]",
                    {{"type", "Replace"}, {"pattern", {{"Regex", "\\s+"}}}, {"content", " "}});
    require_members(parts[2], where + ".normalizers[2]", {{"type", "Lowercase"}});
}

const Json& pattern_of(const Json& pre_tokenizer) { return pre_tokenizer["pretokenizers"][0]["pattern"]; }

Json pattern(const std::string& regex) { return {{"Regex", regex}}; }

void require_pre_tokenizer(const Json& given) {
    const std::string where = "pre_tokenizer", split = where + ".pretokenizers[0]", bytes = where + ".pretokenizers[1]";
    const Json& parts = sequence(given, where, "pretokenizers", 2);
    require_members(parts[0], split,
                    {{"type", "Split"}, {"pattern", nullptr}, {"behavior", "Removed"}, {"invert", true}});
    const Json* regex = member(parts[0], "pattern");
    if (regex == nullptr || (*regex != pattern(WORDS) && *regex != pattern(std::string(SPECIAL_WORDS) + WORDS)))
        refuse(split + ".pattern", regex, pattern(std::string(SPECIAL_WORDS) + WORDS).dump());
    // Its trim_offsets is for what comes after the model.
    require_members(
        parts[1], bytes,
        {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", nullptr}, {"use_regex", nullptr}});
    const Json* use_regex = member(parts[1], "use_regex");
    if (use_regex != nullptr && *use_regex != true) refuse(bytes + ".use_regex", use_regex, "true");
}

// It adds special tokens around a text, which are not asked for here; any other does more.
void require_post_processor(const Json* given) {
    if (given == nullptr || given->is_null()) return;
    require_object(*given, "post_processor");
    const Json* type = member(*given, "type");
    if (type == nullptr || *type != "RobertaProcessing") refuse("post_processor.type", type, "\"RobertaProcessing\"");
    const Json* trims = member(*given, "trim_offsets");
    if (trims == nullptr || *trims != false) refuse("post_processor.trim_offsets", trims, "false");
}

void require_model(const Json& given) {
    require_members(given, "model",
                    {{"type", "BPE"},
                     {"dropout", nullptr},
                     {"unk_token", nullptr},
                     {"continuing_subword_prefix", nullptr},
                     {"end_of_word_suffix", "</w>"},
                     {"fuse_unk", nullptr},
                     {"byte_fallback", nullptr},
                     {"ignore_merges", nullptr},
                     {"vocab", Json::object()},
                     {"merges", Json::array()}});
    const Json* dropout = member(given, "dropout");
    if (dropout != nullptr && !dropout->is_null()) refuse("model.dropout", dropout, "null");
    const Json* unknown = member(given, "unk_token");
    if (unknown == nullptr || !unknown->is_string()) refuse("model.unk_token", unknown, "a token");
    const Json* prefix = member(given, "continuing_subword_prefix");
    if (prefix != nullptr && !prefix->is_null() && *prefix != "")
        refuse("model.continuing_subword_prefix", prefix, "\"\"");
    for (const char* key : {"fuse_unk", "byte_fallback", "ignore_merges"}) {
        const Json* flag = member(given, key);
        if (flag != nullptr && *flag != false) refuse(std::string("model.") + key, flag, "false");
    }
}

}  // namespace

std::string written(const Json& json) {
    const std::string text = json.dump(-1, ' ', false, Json::error_handler_t::replace);
    std::size_t end = 0, count = 0;
    for (; end < text.size() && count < 80; ++count) next_point(text, end);
    return text.substr(0, end) + (end < text.size() ? "…" : "");
}

void require_clip(const Json& content) {
    require_object(content, "it");
    for (const auto& [key, value] : content.items()) {
        bool known = false;
        for (const char* name : {"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer",
                                 "post_processor", "decoder", "model"})
            known = known || key == name;
        if (!known) refuse(shown(key, 40), &value, "no such key");
    }
    for (const char* name : {"version", "added_tokens", "normalizer", "pre_tokenizer", "model"})
        if (member(content, name) == nullptr) refuse(name, nullptr, "one");
    if (content["version"] != "1.0") refuse("version", &content["version"], "\"1.0\"");
    if (!content["added_tokens"].is_array()) refuse("added_tokens", &content["added_tokens"], "a list");
    require_normalizer(content["normalizer"]);
    require_pre_tokenizer(content["pre_tokenizer"]);
    require_post_processor(member(content, "post_processor"));
    require_model(content["model"]);
}

void require_added_token(const Json& token) {
    require_members(token, "added_tokens",
                    {{"id", nullptr},
                     {"content", nullptr},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", nullptr},
                     {"special", nullptr}});
    const Json* content = member(token, "content");
    if (content == nullptr || !content->is_string()) refuse("added_tokens.content", content, "a text");
    if (const Json* id = member(token, "id"); id == nullptr) refuse("added_tokens.id", id, "a number");
    for (const char* key : {"normalized", "special"}) {
        const Json* flag = member(token, key);
        if (flag == nullptr || !flag->is_boolean()) refuse(std::string("added_tokens.") + key, flag, "true or false");
    }
}

bool knows_special_words(const Json& content) {
    return pattern_of(content["pre_tokenizer"]) == pattern(std::string(SPECIAL_WORDS) + WORDS);
}

}  // namespace lrt
