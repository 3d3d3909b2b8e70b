#include "prompt.hpp"

#include "../base/error.hpp"
#include "../base/utf8.hpp"
#include "prompt_tokens.hpp"
#include "unread.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>

namespace lrt {

namespace {

constexpr double GREATEST_WEIGHT = 1000;
constexpr double STEP = 1.1;  // factor of a pair of brackets

// A factor of the weights of some of a prompt's texts.
struct Factor {
    std::size_t first, last;
    double value;
};

// Texts and their weights; no text stands for BREAK.
struct Weighed {
    std::vector<std::optional<std::u32string>> texts;
    std::vector<double> weights;
};

// As Python's float() reads [+-] digits . digits: too many digits give infinity, or 0.
double number_from(const std::string& text) {
    const char* first = text.data() + (text[0] == '+' || text[0] == '-' ? 1 : 0);
    const double sign = text[0] == '-' ? -1 : 1;
    double value = 0;
    const auto result = std::from_chars(first, text.data() + text.size(), value);
    if (result.ec == std::errc::result_out_of_range) {
        const char* before = std::find_if(first, text.data() + text.size(), [](char c) { return c != '0'; });
        value = before < text.data() + text.size() && *before != '.' ? HUGE_VAL : 0;
    }
    return sign * value;
}

// As Python's format(value, ".4g") writes it.
std::string four_digits(double value) {
    if (std::isnan(value)) return "nan";
    char text[32];
    const auto end = std::to_chars(text, text + sizeof text, value, std::chars_format::general, 4).ptr;
    return {text, end};
}

std::u32string stripped_right(std::u32string text) {
    while (!text.empty() && is_space(text.back())) text.pop_back();
    return text;
}

// A prompt while it is read.
class Reader {
  public:
    explicit Reader(std::u32string_view prompt) : prompt_(prompt) {}

    Weighed read() {
        std::size_t at = 0;
        for (auto token = next_token(prompt_, 0); token; token = next_token(prompt_, token->last)) {
            std::u32string text(prompt_.substr(at, token->first - at));
            at = token->last;
            if (token->kind == PromptToken::Kind::end) {
                texts_.emplace_back(stripped_right(std::move(text)));
                texts_.emplace_back(std::nullopt);
                at = behind_spaces(prompt_, at);
            } else {
                texts_.emplace_back(std::move(text));
                take(*token);
            }
        }
        texts_.emplace_back(prompt_.substr(at));
        // Brackets that are not closed extend to the end.
        for (; !round_.empty(); round_.pop_back()) factors_.push_back({round_.back(), texts_.size(), STEP});
        for (; !square_.empty(); square_.pop_back()) factors_.push_back({square_.back(), texts_.size(), 1 / STEP});
        std::vector<double> weights = multiplied();
        return {std::move(texts_), std::move(weights)};
    }

  private:
    void take(const PromptToken& token) {
        const char32_t bracket = token.kind == PromptToken::Kind::bracket ? token.character : U'\0';
        const bool is_weight = token.kind == PromptToken::Kind::weight;
        if (bracket == U'(') {
            round_.push_back(texts_.size());
        } else if (bracket == U'[') {
            square_.push_back(texts_.size());
        } else if ((is_weight || bracket == U')') && !round_.empty()) {
            close(round_, is_weight ? number_from(token.weight) : STEP);
        } else if (bracket == U']' && !square_.empty()) {
            close(square_, 1 / STEP);
        } else if (token.kind == PromptToken::Kind::escaped) {
            texts_.emplace_back(std::u32string(1, token.character));
        } else {
            texts_.emplace_back(prompt_.substr(token.first, token.last - token.first));
        }
    }

    void close(std::vector<std::size_t>& opened, double factor) {
        factors_.push_back({opened.back(), texts_.size(), factor});
        opened.pop_back();
    }

    std::vector<double> multiplied() const {
        std::vector<double> weights(texts_.size(), 1.0);
        for (const Factor& factor : factors_)
            for (std::size_t i = factor.first; i < factor.last; ++i) weights[i] *= factor.value;
        return weights;
    }

    std::u32string_view prompt_;
    std::vector<std::optional<std::u32string>> texts_;
    std::vector<std::size_t> round_, square_;  // the first text in each open bracket
    std::vector<Factor> factors_;
};

void check_weights(std::string_view prompt, const std::vector<double>& weights) {
    const auto fits = [](double weight) { return std::abs(weight) <= GREATEST_WEIGHT; };
    if (std::all_of(weights.begin(), weights.end(), fits)) return;
    // The first that is no number, else the first of the greatest ones.
    auto worst = std::find_if(weights.begin(), weights.end(), [](double weight) { return std::isnan(weight); });
    if (worst == weights.end())
        worst = std::max_element(weights.begin(), weights.end(),
                                 [](double a, double b) { return std::abs(a) < std::abs(b); });
    throw input_error("the prompt " + shown(prompt, 60) + " has a weight of " + four_digits(*worst) +
                      ": expected weights (products of nested brackets) from -1000 to 1000. For literal brackets write "
                      "\\( and \\), or use LATENTRT_SYNTAX_PLAIN");
}

std::vector<Section> sections_of(const Weighed& weighed) {
    std::vector<Section> sections(1);
    for (std::size_t i = 0; i < weighed.texts.size(); ++i) {
        if (!weighed.texts[i]) {
            sections.emplace_back();
            continue;
        }
        Section& section = sections.back();
        const std::string text = encoded(*weighed.texts[i]);
        if (!section.empty() && section.back().weight == weighed.weights[i])
            section.back().text += text;
        else if (!text.empty())
            section.push_back({text, weighed.weights[i]});
    }
    // Nothing comes after the last BREAK.
    if (sections.size() > 1 && sections.back().empty()) sections.pop_back();
    return sections;
}

std::u32string points_of(std::string_view prompt) {
    if (std::optional<std::u32string> points = decoded(prompt)) return *std::move(points);
    std::size_t at = 0;
    while (next_point(prompt, at)) {
    }
    throw input_error("the prompt " + shown(prompt, 60) + " is not UTF-8 at byte " + std::to_string(at) +
                      ": it was truncated or decoded wrongly");
}

}  // namespace

std::vector<Section> parse(std::string_view prompt, latentrt_prompt_syntax syntax, const Log& log) {
    const std::u32string points = points_of(prompt);
    if (const std::string told = unread(points, syntax); !told.empty()) {
        const std::string cut = points.size() <= 60 ? std::string(prompt) : encoded(points.substr(0, 60)) + "…";
        log.warn("the prompt " + shown(cut) + " holds what is read as text here: " + told);
    }
    if (syntax == LATENTRT_SYNTAX_PLAIN) return {{{std::string(prompt), 1.0}}};
    const Weighed weighed = Reader(points).read();
    check_weights(prompt, weighed.weights);
    return sections_of(weighed);
}

}  // namespace lrt
