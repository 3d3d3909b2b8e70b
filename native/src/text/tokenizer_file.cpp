#include "tokenizer_file.hpp"

#include "../base/json.hpp"
#include "../base/utf8.hpp"
#include "tokenizer_checks.hpp"

#include <algorithm>
#include <set>
#include <stdexcept>

namespace lrt {

namespace {

constexpr std::size_t MOST = std::size_t{1} << 26;  // bytes of tokenizer.json; CLIP's has 1.7 MB
constexpr std::size_t MOST_IN_WORD = 1000;          // bytes of an added token
constexpr std::uint64_t MOST_IDS = std::uint64_t{1} << 22;
constexpr std::size_t DEEPEST = 20;

std::uint32_t id_from(const Json& json, const std::string& token) {
    // What fits is read as unsigned; negative numbers, fractions and texts are not.
    const std::uint64_t id = json.is_number_unsigned() ? json.get<std::uint64_t>() : MOST_IDS;
    if (id >= MOST_IDS)
        throw std::runtime_error("the id of " + shown(token, 40) + " is " + written(json) + ": expected 0 to " +
                                 std::to_string(MOST_IDS - 1));
    return static_cast<std::uint32_t>(id);
}

std::pair<std::string, std::string> pair_from(const std::string& line) {
    const std::size_t space = line.find(' ');
    if (space == std::string::npos || line.find(' ', space + 1) != std::string::npos)
        throw std::runtime_error("model.merges holds " + shown(line, 40) + ": expected two names with a space between");
    return {line.substr(0, space), line.substr(space + 1)};
}

// Reads a document, and puts the vocabulary and the merges, which are nearly all of it, aside while it is parsed.
class Reader : public nlohmann::json_sax<Json> {
  public:
    explicit Reader(TokenizerFile& file) : file_(file) {}

    Json read(std::string_view text) {
        Json::sax_parse(text.begin(), text.end(), this);
        return std::move(whole_);
    }

    bool null() override { return take(nullptr); }
    bool boolean(bool value) override { return take(value); }
    bool number_integer(number_integer_t value) override { return take(value); }
    bool number_unsigned(number_unsigned_t value) override { return take(value); }
    bool number_float(number_float_t value, const string_t&) override { return take(value); }
    bool string(string_t& value) override { return take(std::move(value)); }
    bool binary(binary_t&) override { return false; }
    bool start_object(std::size_t) override { return open(Json::object()); }
    bool start_array(std::size_t) override { return open(Json::array()); }
    bool end_object() override { return close(); }
    bool end_array() override { return close(); }

    bool key(string_t& name) override {
        Open& object = open_.back();
        object.key = std::move(name);
        // The vocabulary finds what occurs twice in it by itself.
        if (!is_in("vocab") && object.value.contains(object.key))
            throw std::runtime_error("the key " + shown(object.key, 40) + " occurs twice");
        return true;
    }

    bool parse_error(std::size_t, const std::string&, const Json::exception& error) override {
        // The library's text begins with its own name of the error, in brackets.
        const std::string what = error.what();
        const std::size_t end = what.find("] ");
        throw std::runtime_error(what.substr(end == std::string::npos ? 0 : end + 2, 300));
    }

  private:
    // An object or a list that is not closed; `key` is the last one.
    struct Open {
        Json value;
        std::string key;
    };

    // Whether what comes is a member of this part of the model.
    bool is_in(const char* name) const { return open_.size() == 3 && open_[0].key == "model" && open_[1].key == name; }

    bool open(Json value) {
        if (open_.size() == DEEPEST) throw std::runtime_error("it is nested too deeply");
        open_.push_back({std::move(value), {}});
        return true;
    }

    bool close() {
        Json value = std::move(open_.back().value);
        open_.pop_back();
        return take(std::move(value));
    }

    bool take(Json value) {
        if (open_.empty()) {
            whole_ = std::move(value);
        } else if (is_in("vocab")) {
            file_.vocabulary.add(open_.back().key, id_from(value, open_.back().key));
        } else if (is_in("merges")) {
            add_merge(value);
        } else if (Open& parent = open_.back(); parent.value.is_array()) {
            parent.value.push_back(std::move(value));
        } else {
            parent.value[parent.key] = std::move(value);
        }
        return true;
    }

    void add_merge(Json& json) {
        if (json.is_string()) {
            const auto& line = json.get_ref<const std::string&>();
            if (line.rfind("#version", 0) != 0) file_.merges.push_back(pair_from(line));
        } else if (json.is_array() && json.size() == 2 && json[0].is_string() && json[1].is_string()) {
            file_.merges.emplace_back(json[0].get<std::string>(), json[1].get<std::string>());
        } else {
            throw std::runtime_error("model.merges holds " + written(json) + ": expected pairs of names");
        }
    }

    TokenizerFile& file_;
    Json whole_;
    std::vector<Open> open_;
};

AddedToken added_token_from(const Json& json) {
    require_added_token(json);
    AddedToken token{json.at("content").get<std::string>(), 0, json.at("normalized").get<bool>()};
    const std::size_t size = token.content.size();
    if (size == 0 || size > MOST_IN_WORD)
        throw std::runtime_error("added_tokens: " + shown(token.content, 40) + " has " + std::to_string(size) +
                                 " bytes: expected 1 to " + std::to_string(MOST_IN_WORD));
    token.id = id_from(json.at("id"), token.content);
    return token;
}

// Tokens that are not in the vocabulary are numbered from its size on, whatever the file says; so other numbers are
// refused.
void check_numbers(const std::vector<AddedToken>& tokens, const Vocabulary& vocabulary) {
    std::set<std::string> seen;
    std::uint64_t next = vocabulary.size();
    for (const AddedToken& token : tokens) {
        if (!seen.insert(token.content).second)
            throw std::runtime_error("added_tokens: " + shown(token.content, 40) + " occurs twice");
        const auto known = vocabulary.find(token.content);
        const std::uint64_t expected = known ? *known : next;
        if (token.id != expected)
            throw std::runtime_error("added_tokens: the id of " + shown(token.content, 40) + " is " +
                                     std::to_string(token.id) + ": expected " + std::to_string(expected));
        if (!known) ++next;
    }
}

}  // namespace

TokenizerFile tokenizer_file_from(std::string_view json) {
    if (json.size() > MOST) throw std::runtime_error("it has more than " + std::to_string(MOST >> 20) + " MiB");
    TokenizerFile file;
    const Json content = Reader(file).read(json);
    require_clip(content);
    file.vocabulary.finish();
    file.unknown = content.at("model").at("unk_token").get<std::string>();
    file.special_words = knows_special_words(content);
    for (const Json& token : content.at("added_tokens")) file.added.push_back(added_token_from(token));
    check_numbers(file.added, file.vocabulary);
    return file;
}

}  // namespace lrt
