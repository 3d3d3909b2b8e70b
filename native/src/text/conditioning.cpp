#include "conditioning.hpp"

#include "../base/error.hpp"
#include "../base/limits.hpp"
#include "../base/utf8.hpp"

#include <algorithm>
#include <map>
#include <set>

namespace lrt {

namespace {

// Chunks in one run of a text encoder: a text of any length must not need much more memory than a short one.
constexpr std::size_t AT_ONCE = 16;

template <typename Rows>
const auto& row_of(const Rows& rows, const std::string& text) {
    return *std::find_if(rows.begin(), rows.end(), [&](const auto& row) { return row.text == text; });
}

std::size_t tokens_of(const Chunks& chunks) { return chunks.ids.values.size(); }

// Hidden states (S, D) times their tokens' weights (S), brought back to their mean: the emphasis "Original" of
// AUTOMATIC1111's web UI (its modules/sd_emphasis.py). Where all weights are 1 they stay as they are, to the bit.
void emphasise(float* states, const float* weights, std::size_t length, std::size_t width) {
    if (std::all_of(weights, weights + length, [](float weight) { return weight == 1.0f; })) return;
    double before = 0, after = 0;
    for (std::size_t token = 0; token < length; ++token)
        for (std::size_t i = token * width; i < (token + 1) * width; ++i) {
            before += static_cast<double>(states[i]);
            states[i] *= weights[token];
            after += static_cast<double>(states[i]);
        }
    const auto factor = static_cast<float>(after == 0 ? 1.0 : before / after);
    for (std::size_t i = 0; i < length * width; ++i) states[i] *= factor;
}

}  // namespace

Tokens::Tokens(const std::vector<Side>& sides, const std::vector<Tokenizer>& tokenizers, const Encoding& encoding,
               const Log& log) {
    const bool any = std::any_of(sides.begin(), sides.end(), [](const Side& side) { return !side.zeros; });
    if (!any) return;
    std::map<std::string, std::vector<Section>> parsed;
    std::set<std::size_t> lengths;
    of_encoder_.resize(tokenizers.size());
    for (std::size_t encoder = 0; encoder < tokenizers.size(); ++encoder)
        for (const Side& side : sides) {
            if (side.zeros) continue;
            std::vector<Row>& rows = of_encoder_[encoder];
            for (const std::string& text : side.texts[encoder]) {
                const auto same = [&](const Row& row) { return row.text == text; };
                if (std::any_of(rows.begin(), rows.end(), same)) continue;
                if (parsed.count(text) == 0) parsed[text] = parse(text, encoding.syntax, log);
                rows.push_back({text, tokenizers[encoder].chunks(parsed[text], encoding.split)});
                lengths.insert(tokens_of(rows.back().chunks));
            }
        }
    warn_of_cuts(tokenizers.front().capacity(), log);
    check_lengths(sides);
    if (lengths.size() < 2) return;
    // The shorter ones are padded with empty chunks.
    for (std::size_t encoder = 0; encoder < tokenizers.size(); ++encoder) {
        std::vector<Row>& rows = of_encoder_[encoder];
        if (std::none_of(rows.begin(), rows.end(), [](const Row& row) { return row.text.empty(); }))
            rows.push_back({"", tokenizers[encoder].chunks(parse("", LATENTRT_SYNTAX_PLAIN, {}), false)});
    }
}

// Once for each text, also where two text encoders cut it.
void Tokens::warn_of_cuts(std::size_t capacity, const Log& log) const {
    std::map<std::string, const Chunks*> cut;
    for (const auto& rows : of_encoder_)
        for (const Row& row : rows)
            if (!row.chunks.dropped.empty()) cut[row.text] = &row.chunks;
    for (const auto& [text, chunks] : cut)
        log.warn("the prompt has " + std::to_string(chunks->tokens) + " tokens and only the first " +
                 std::to_string(capacity) + (chunks->ids.rows() == 1 ? "" : " of each part") +
                 " are used; dropped: " + shown(chunks->dropped, 200) + "; LATENTRT_LONG_CHUNK uses all");
}

// Every text of a call is padded to the longest one, and every image has its own copy of each side's.
void Tokens::check_lengths(const std::vector<Side>& sides) const {
    std::size_t longest = 0;
    for (const auto& rows : of_encoder_)
        for (const Row& row : rows) longest = std::max(longest, tokens_of(row.chunks));
    if (longest > static_cast<std::size_t>(limits().MAX_TOKENS_OF_TEXT))
        throw input_error("the longest text of the call has " + std::to_string(longest) + " tokens: expected at most " +
                          std::to_string(limits().MAX_TOKENS_OF_TEXT) + "; " + raised_by("MAX_TOKENS_OF_TEXT"));
    const std::size_t images = sides.front().images(), total = longest * images * sides.size();
    if (total > static_cast<std::size_t>(limits().MAX_TOKENS))
        throw input_error("the texts of " + std::to_string(images) + " images, padded to " + std::to_string(longest) +
                          " tokens, have " + std::to_string(total) + " tokens: expected at most " +
                          std::to_string(limits().MAX_TOKENS) + "; shorten them, or draw fewer images at once; " +
                          raised_by("MAX_TOKENS"));
}

Encoded::Encoded(const Tokens& tokens, const RunEncoder& run, std::int64_t clip_skip) {
    std::vector<std::int64_t> layers{0};
    if (clip_skip != 0) layers.push_back(clip_skip);
    for (std::size_t encoder = 0; encoder < tokens.of_encoder_.size(); ++encoder)
        of_encoder_.push_back(run_rows(tokens.of_encoder_[encoder], run, encoder, layers));
}

// Each different chunk is encoded once.
Encoded::OfEncoder Encoded::run_rows(const std::vector<Tokens::Row>& rows, const RunEncoder& run, std::size_t encoder,
                                     const std::vector<std::int64_t>& layers) {
    std::map<std::vector<std::int64_t>, std::size_t> known;
    std::vector<const std::int64_t*> different;
    OfEncoder result;
    std::size_t length = 0;
    for (const Tokens::Row& row : rows) {
        length = row.chunks.ids.stride();
        Text text{row.text, {}, &row.chunks};
        for (std::size_t i = 0; i < static_cast<std::size_t>(row.chunks.ids.rows()); ++i) {
            const std::int64_t* ids = row.chunks.ids.row(i);
            const auto [found, added] = known.emplace(std::vector<std::int64_t>(ids, ids + length), different.size());
            if (added) different.push_back(ids);
            text.rows.push_back(found->second);
        }
        result.texts.push_back(std::move(text));
    }
    for (std::size_t first = 0; first < different.size(); first += AT_ONCE) {
        const std::size_t count = std::min(AT_ONCE, different.size() - first);
        Ids ids(Shape{static_cast<std::int64_t>(count), static_cast<std::int64_t>(length)});
        for (std::size_t i = 0; i < count; ++i) std::copy_n(different[first + i], length, ids.row(i));
        EncoderOutputs part = run(encoder, ids, layers);
        if (first == 0) {
            result.outputs = std::move(part);
            continue;
        }
        const auto append = [](Floats& to, const Floats& from) {
            to.values.insert(to.values.end(), from.values.begin(), from.values.end());
            to.shape[0] += from.shape[0];
        };
        append(result.outputs.hidden_states, part.hidden_states);
        if (part.pooled) append(*result.outputs.pooled, *part.pooled);
    }
    return result;
}

// Writes `length` rows of hidden states of a text, padded with empty chunks, each at the beginning of `width` floats.
void Encoded::write_states(std::size_t encoder, const std::string& text, bool skipped, std::size_t length, float* out,
                           std::size_t width) const {
    const OfEncoder& all = of_encoder_[encoder];
    const Shape& shape = all.outputs.hidden_states.shape;
    const auto layers = static_cast<std::size_t>(shape[1]), tokens = static_cast<std::size_t>(shape[2]);
    const auto own = static_cast<std::size_t>(shape[3]);
    const std::size_t layer = skipped ? layers - 1 : 0;
    std::vector<float> states(tokens * own);
    for (std::size_t at = 0, chunk = 0; at < length; at += tokens, ++chunk) {
        const Text* source = &row_of(all.texts, text);
        std::size_t index = chunk;
        if (chunk >= source->rows.size()) {
            source = &row_of(all.texts, "");
            index = 0;
        }
        const float* from = all.outputs.hidden_states.row(source->rows[index]) + layer * tokens * own;
        std::copy_n(from, states.size(), states.data());
        if (chunk == index) emphasise(states.data(), source->chunks->weights.row(index), tokens, own);
        for (std::size_t token = 0; token < tokens; ++token)
            std::copy_n(&states[token * own], own, out + (at + token) * width);
    }
}

Conditioning Encoded::conditioning(const std::vector<Side>& sides, const std::vector<TextEncoder>& encoders,
                                   std::int64_t clip_skip) const {
    std::size_t length = 0, width = 0;
    for (const OfEncoder& all : of_encoder_)
        for (const Text& text : all.texts) length = std::max(length, tokens_of(*text.chunks));
    for (const TextEncoder& facts : encoders) width += static_cast<std::size_t>(facts.hidden_size);
    const std::size_t images = sides.front().images(), groups = sides.size();
    const auto sides_of = [](std::size_t side) { return static_cast<std::int64_t>(side); };
    Conditioning result{Floats(Shape{sides_of(images), sides_of(groups), sides_of(length), sides_of(width)}), {}};

    std::size_t pooling = encoders.size(), pooled_width = 0;
    for (std::size_t i = 0; i < encoders.size(); ++i)
        if (encoders[i].pooled && pooling == encoders.size()) pooling = i;
    if (pooling < encoders.size()) {
        pooled_width = of_encoder_[pooling].outputs.pooled->stride();
        result.pooled = Floats(Shape{sides_of(images), sides_of(groups), sides_of(pooled_width)});
    }
    for (std::size_t image = 0; image < images; ++image)
        for (std::size_t group = 0; group < groups; ++group) {
            const Side& side = sides[group];
            if (side.zeros) continue;
            const bool skipped = clip_skip != 0 && group + 1 == groups;
            float* out = result.context.row(image) + group * length * width;
            for (std::size_t encoder = 0; encoder < encoders.size(); ++encoder) {
                write_states(encoder, side.texts[encoder][image], skipped, length, out, width);
                out += encoders[encoder].hidden_size;
            }
            if (!result.pooled) continue;
            const OfEncoder& all = of_encoder_[pooling];
            const std::size_t row = row_of(all.texts, side.texts[pooling][image]).rows.front();
            std::copy_n(all.outputs.pooled->row(row), pooled_width, result.pooled->row(image) + group * pooled_width);
        }
    return result;
}

}  // namespace lrt
